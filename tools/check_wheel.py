"""Check the wheel: build it twice alike, install it into a clean environment, run a small job.

Run: python -m tools check_wheel

The environment holds the wheel alone. Its dependencies are read from the environment that runs this
program, through a .pth file, so that torch is not installed a second time; an editable install of
the project there is not followed. The job runs in an empty folder with an empty home.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

from tools import parser

ROOT = Path(__file__).parents[1]
JOB = (
    "run", "quickstart", "--json",
    "--set", "data.images=400", "--set", "data.validation=0.05",
    "--set", "train.epochs=1", "--set", "prune.epochs=1",
    "--set", "prune.rounds=1", "--set", "prune.fraction=0.3", "--set", "scan.images=100",
    "--set", "scan.fractions=[0.3]", "--set", "scan.layer_fractions=[0.3]",
    "--set", "quantize.images=50", "--set", "quantize.scan_images=100",
    "--set", "bench.repeats=5", "--set", "bench.warmup=1",
)  # fmt: skip
"""The quickstart on 400 images: every stage down to the packed file and the report."""


def build(folder: Path) -> Path:
    """Build the wheel into a folder."""
    _call(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_metadata(wheel: Path) -> None:
    """Check that all links of the README are absolute and that the package says it is typed."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (path,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(path).decode())
    assert "secateur/py.typed" in names
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Project-URL")
    assert metadata.get_all("Classifier")
    readme = metadata.get_payload()
    assert isinstance(readme, str)
    assert readme.startswith("# Secateur")
    relative = [part[:60] for part in readme.split("](")[1:] if not part.startswith(("http", "#"))]
    assert not relative, f"relative links: {relative}"


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel into an environment of its own; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = _call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    dependencies = sysconfig.get_path("purelib")
    (Path(site) / "dependencies.pth").write_text(dependencies + "\n", encoding="utf-8")
    return python


def run_job(python: Path, folder: Path) -> None:
    """Run the small job with the installed package in an empty folder."""
    home = folder / "home"
    home.mkdir()
    where = _call(python, "-c", "import secateur; print(secateur.__file__)", cwd=home)
    assert Path(where.strip()).is_relative_to(folder), f"not the installed package: {where}"
    secateur = python.with_name("secateur")
    records = _call(secateur, *JOB, cwd=home)
    assert '"variant":"packed"' in records.replace(" ", "")
    (packed,) = home.glob("runs/quickstart-*/net.sec")
    assert "are right" in _call(secateur, "verify", packed, cwd=home)


def _call(*command: object, cwd: Path = ROOT) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SECATEUR"))}
    environment |= {"HOME": str(cwd), "XDG_CACHE_HOME": str(cwd / "cache")} if cwd != ROOT else {}
    done = subprocess.run(  # noqa: S603 fixed commands
        [str(part) for part in command], cwd=cwd, env=environment, text=True, capture_output=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def main(arguments: list[str]) -> None:
    """Run all checks; print what was installed."""
    parser("check_wheel", __doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        wheel = build(root)
        again = build(root / "again")
        assert wheel.read_bytes() == again.read_bytes(), "two builds differ"
        check_metadata(wheel)
        run_job(install(wheel, root / "environment"), root)
        print(f"{wheel.name}: installed alone, ran {' '.join(JOB[:2])} and verified its file")
