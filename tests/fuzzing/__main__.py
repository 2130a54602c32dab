"""Fuzz the readers, coverage-guided, and write what was tried.

Run: PYTHONPATH=tests python -m fuzzing --seconds 60 --out results/fuzz

Each target runs in a process of its own under atheris (libFuzzer for Python), which starts from
tests/fuzzing/seeds/TARGET and from the files that the tests make. It stops at the first finding,
whose input is then in OUT/TARGET-crash-*. With --target, the figures of other targets stay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

SEEDS = Path(__file__).parent / "seeds"
SECONDS_EACH, MEBIBYTES = 20, 2048
STATISTICS = {
    "number_of_executed_units": "inputs",
    "new_units_added": "kept",
    "slowest_unit_time_sec": "slowest_seconds",
    "peak_rss_mb": "peak_mebibytes",
}


def seeds(target: str) -> Iterator[bytes]:
    """Files to start from: small ones that are right, and what is in the repository."""
    for path in sorted((SEEDS / target).glob("*")):
        yield path.read_bytes()
    if target in ("container", "onnx_file"):
        from helpers.artifacts import packed, quantized

        yield (packed if target == "container" else quantized)("micro")
    elif target == "recipe":
        from secateur.recipe import load_recipe

        yield load_recipe("quickstart").to_toml().encode()
    elif target == "data_file":
        from secateur.data.official import BUILT_IN

        file = resources.files("secateur.data") / BUILT_IN / "t10k-labels-idx1-ubyte.gz"
        yield file.read_bytes()


def fuzz(target: str, seconds: int, out: Path) -> dict[str, Any]:
    """Fuzz one target in a process of its own; return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds(target)):
            (Path(folder) / str(number)).write_bytes(seed)
        command = [
            sys.executable, "-m", __spec__.name, "--inside", target, folder,
            f"-max_total_time={seconds}", f"-timeout={SECONDS_EACH}", f"-rss_limit_mb={MEBIBYTES}",
            f"-artifact_prefix={out}/{target}-", "-print_final_stats=1", "-max_len=65536",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    figures: dict[str, Any] = {
        "target": target,
        "seconds": seconds,
        "findings": int(done.returncode != 0),
    }
    for name, key in STATISTICS.items():
        match = re.search(rf"stat::{name}:\s*(\d+)", done.stderr)
        figures[key] = int(match[1]) if match else None
    covered = re.findall(r"cov: (\d+)", done.stderr)
    figures["branches"] = int(covered[-1]) if covered else None
    if done.returncode:
        (out / f"{target}.log").write_text(done.stderr[-20_000:])
    return figures


def inside(target: str, arguments: list[str]) -> None:
    """Run a target under atheris, in this process, which it ends."""
    import atheris

    with atheris.instrument_imports(include=["secateur"]):
        from fuzzing.targets import TARGETS
    from secateur.errors import SecateurError

    def one(data: bytes) -> None:
        with contextlib.suppress(SecateurError):
            TARGETS[target](data)

    atheris.Setup([target, *arguments], one)
    atheris.Fuzz()


def table(rows: list[dict[str, Any]], where: str) -> str:
    """The figures as Markdown."""
    keys = ["target", "seconds", "inputs", "kept", "branches", "slowest_seconds", "peak_mebibytes",
            "findings"]  # fmt: skip
    lines = ["| " + " | ".join(key.replace("_", " ") for key in keys) + " |",
             "| --- |" + " ---: |" * (len(keys) - 1)]  # fmt: skip
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    head = (
        "# Fuzzing\n\nMade by `make fuzz`: each reader of files from strangers under atheris "
        "(coverage-guided), which it must leave with a result or an error of one line.\n"
        f"An input may take {SECONDS_EACH} s and {MEBIBYTES:,} MiB; *kept* are inputs that reached "
        "new code.\n\n"
    )
    return head + "\n".join(lines) + f"\n\n{where}\n"


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    from fuzzing.targets import TARGETS
    from secateur import environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    measured = options.out / "measured.jsonl"
    before = measured.read_text().splitlines() if options.target and measured.exists() else []
    rows = {row["target"]: row for row in map(json.loads, before)}
    for target in options.target or TARGETS:
        rows[target] = fuzz(target, options.seconds, options.out)
        print(json.dumps(rows[target]), flush=True)
    versions = environment.versions()
    where = f"{environment.processor()}; Python {versions['python']}, onnx {versions['onnx']}."
    measured.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    (options.out / "README.md").write_text(table(list(rows.values()), where))
    sys.exit(any(row["findings"] for row in rows.values()))


if __name__ == "__main__":
    main()
