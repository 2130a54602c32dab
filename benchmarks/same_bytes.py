"""Compare two fresh runs of one recipe on one machine, byte for byte.

Run: python -m benchmarks same_bytes results/same_bytes [--only chain | compress]
Both runs start in an empty folder. All ONNX files, tensors and packed files of their stages are
compared; manifests, records and reports are not, because they contain times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common.markdown import table
from benchmarks.common.records import Record, append, read
from secateur.wording import counted

SETS = ("data.images=1000", "train.epochs=1", "prune.rounds=1", "prune.epochs=1",
        "scan.fractions=[0.2, 0.5]", "scan.layer_fractions=[0.5]", "bench.repeats=5")  # fmt: skip
COMMANDS = {
    "chain": ("run", "quickstart", *(word for change in SETS for word in ("--set", change))),
    "compress": ("compress", "--epochs", "1"),
}
"""Arguments of ``secateur``: a short quickstart, and the network in the package."""

KINDS = (".sec", ".onnx", ".safetensors")
HEAD = """# The same bytes twice

Made by `python -m benchmarks same_bytes results/same_bytes`: each command runs twice, in an empty
folder, and all networks and tensors of its stages are compared. `secateur compress` chooses by
measured latency, so two runs can choose different candidates; the files of each candidate are the
same.
"""


def run(command: tuple[str, ...], folder: Path) -> dict[str, tuple[int, str]]:
    """Run a command in ``folder``, an empty one; path of each file to its size and SHA-256."""
    arguments = [sys.executable, "-m", "secateur", *command, "--out", "out"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode not in (0, 3):  # 3: the goal of compress is missed
        raise RuntimeError(done.stderr)
    files = sorted(p for p in (folder / "out").rglob("*") if p.suffix in KINDS and p.is_file())
    stages = [path for path in files if "stages" in path.parts]
    return {str(path.relative_to(folder / "out")): _digest(path) for path in stages}


def _digest(path: Path) -> tuple[int, str]:
    content = path.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def compare(name: str) -> Record:
    """Run one of :data:`COMMANDS` twice."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        first, second = (run(COMMANDS[name], Path(folder)) for folder in (one, other))
    return {
        "name": name,
        "command": f"secateur {' '.join(COMMANDS[name])}",
        "files": {path: [*first[path], first[path] == second.get(path)] for path in first},
        "only_once": sorted(first.keys() ^ second.keys()),
        "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
        "seconds": round(time.monotonic() - start, 1),
    }


def is_same(record: Record) -> bool:
    """Whether both runs wrote the same files."""
    return all(same for *_, same in record["files"].values()) and not record["only_once"]


def page(records: list[Record]) -> str:
    """The records as Markdown."""
    lines = [HEAD]
    for record in records:
        count, files = len(record["files"]), record["files"]
        same = sum(same for *_, same in files.values())
        lines += [f"## `{record['command']}`", ""]
        lines += [f"**{same} of {count} files are the same, byte for byte.**", ""]
        rows = [
            [f"`{path}`", f"{size:,}", f"`{digest[:16]}`", "yes" if same else "**no**"]
            for path, (size, digest, same) in files.items()
        ]
        lines += table(["File", "Bytes", "SHA-256", "The same"], rows)
        lines += [f"\nIn one run only: {path}" for path in record["only_once"]]
        lines += ["", f"{record['processor']}; {counted(record['threads'], 'thread')}; "
                  f"commit {record['commit']}.", ""]  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks same_bytes", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=COMMANDS)
    options = parser.parse_args(arguments)
    measured = options.out / "measured.jsonl"
    for name in [options.only] if options.only else COMMANDS:
        record = compare(name)
        append(measured, record, ())
        print(json.dumps(record))
    newest = {record["name"]: record for record in read(measured)}
    (options.out / "README.md").write_text(page(list(newest.values())), encoding="utf-8")
    sys.exit(not all(is_same(record) for record in newest.values()))
