"""Run a command on every bad input and write the results."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]  # the tests' helpers make most of the inputs

from benchmarks.bad_inputs.case import Case, run_case  # noqa: E402
from benchmarks.bad_inputs.files import outputs, recipes, stored  # noqa: E402
from benchmarks.bad_inputs.images import folders, images, official  # noqa: E402
from benchmarks.bad_inputs.networks import onnx_files, packed_files  # noqa: E402
from benchmarks.common import records  # noqa: E402
from benchmarks.common.markdown import table  # noqa: E402
from secateur.report import numbers  # noqa: E402

KINDS: tuple[Callable[[], Iterator[Case]], ...] = (
    packed_files, onnx_files, images, folders, official, recipes, stored, outputs,
)  # fmt: skip

HEAD = """# Bad inputs

Made by `python -m benchmarks bad_inputs results/bad_inputs`. Each command runs in a separate
process, in an empty folder. *Rejected* means one line on stderr and exit code 2, or 1 if a stored
result is damaged. *Accepted* means exit code 0: the input is unusual but valid, or the command
recovers. A traceback, an internal error, a control character on the terminal or another result
than expected counts as wrong. Seconds include the start of Python; memory is the peak of the
command's largest process.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The records as Markdown."""
    wrong = [row for row in rows if row["faults"]]
    slowest = max(rows, key=lambda row: row["seconds"])
    largest = max(rows, key=lambda row: row["mebibytes"])
    lines = [
        HEAD,
        f"**{len(rows)} inputs, {len(wrong)} handled wrongly.** The slowest took "
        f"{numbers.significant(slowest['seconds'])} s ({slowest['name']}), the largest "
        f"{numbers.count(largest['mebibytes'])} MiB ({largest['name']}).",
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines += ["", f"## {kind}", ""]
        header = ["Input", "Command", "Exit code", "Seconds", "MiB", "Result"]
        some = [row for row in rows if row["kind"] == kind]
        lines += table(header, [_cells(row) for row in some])
    where = sorted({f"{row['processor']}; commit {row['commit']}" for row in rows})
    return "\n".join([*lines, "", *where]) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    command = row["command"].replace("|", "\\|")
    handled = f"**wrong: {', '.join(row['faults'])}**" if row["faults"] else row["ends"]
    command = command if len(command) <= 70 else command[:67] + "..."
    return [row["name"], f"`{command}`", str(row["code"]), f"{row['seconds']:.1f}",
            str(row["mebibytes"]), handled]  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only inputs whose name contains TEXT"
    )
    parser.add_argument("--resume", action="store_true", help="keep existing records")
    options = parser.parse_args(arguments)
    measured = options.out / "measured.jsonl"
    if not options.resume:
        measured.unlink(missing_ok=True)
    for make in KINDS:
        for case in make():
            wanted = options.only in f"{case.kind}: {case.name}"
            if not wanted or records.is_there(measured, case.key):
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = run_case(case, Path(folder))
            records.append(measured, row, ())
            print(json.dumps(row), flush=True)
    rows = records.read(measured)
    (options.out / "README.md").write_text(page(rows), encoding="utf-8")
    sys.exit(any(row["faults"] for row in rows))
