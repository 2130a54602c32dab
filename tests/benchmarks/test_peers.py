"""The report on peers says what its records say; no peer is needed for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import records as json_lines
from benchmarks.peers.report import write_report

IMAGES = 2000
CELL = {
    "network": "alexnet", "recipe_id": "0123456789ab", "seed": 0, "calibration": 512, "images": 0,
    "threads": 2, "recipe": "alexnet-fashionmnist-quick", "sets": [], "data": "fashionmnist",
    "geometry": "64x64 stem=paper", "processor": "a processor", "versions": {"torch": "2.15"},
    "commit": "abcdef012345",
}  # fmt: skip


def accuracy(row: str, wrong: int) -> dict[str, Any]:
    right = np.arange(IMAGES) >= wrong
    packed = json_lines.pack(right)
    return CELL | {"row": row, "bytes": 1000, "right": packed, "test_images": IMAGES}


def write(folder: Path, ours_wrong: int, ours_ms: float) -> str:
    """The page of four rows and a failing one, the peer at 4 ms and eager fp32 at 60."""
    wrong = {"eager": 100, "quantize_static": 101, "nncf": 200, "ours-int8": ours_wrong}
    took = {"eager": 60.0, "quantize_static": 4.0, "nncf": 0.5, "ours-int8": ours_ms}
    records = [accuracy(row, count) for row, count in wrong.items()]
    records.append(CELL | {"row": "torchao", "error": "RuntimeError: no | kernel"})
    rows: dict[str, Any] = {row: {"milliseconds": [ms] * 20} for row, ms in took.items()}
    rows["torchao"] = {"error": "RuntimeError: at 224 as well"}
    records.append(CELL | {"row": "latency", "repeats": 20, "rows": rows})
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "alexnet.jsonl").write_text(text)
    write_report(folder)
    return (folder / "README.md").read_text()


def line_of(page: str, start: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(start))


def test_ratios_and_verdicts_are_computed(tmp_path: Path) -> None:
    page = write(tmp_path, ours_wrong=102, ours_ms=1.0)
    cells = line_of(page, "| **Secateur** pruned and int8 (onnxruntime)").split(" | ")
    assert cells[2].startswith("94.90 [")
    assert cells[3].startswith("+0.10 [")
    assert cells[4] == "yes"
    assert cells[5] == "1.00 (1.00 to 1.00)"
    assert cells[6].startswith("60.0×")
    assert cells[7].startswith("4.00×")  # of quantize_static: NNCF is faster and lost 5 points
    assert line_of(page, "- Against eager fp32").endswith("aim 30.0×: reached.")
    against = line_of(page, "- Against the best unpruned int8 peer")
    assert "`quantize_static`, defaults" in against
    assert against.endswith("aim 5.00×: missed by 1.00×.")


def test_speed_of_a_row_that_lost_too_much_does_not_count(tmp_path: Path) -> None:
    page = write(tmp_path, ours_wrong=120, ours_ms=0.1)
    assert "- No row of Secateur with a time lost at most 0.5 points: both aims missed." in page
    assert line_of(page, "| **Secateur** pruned and int8").split(" | ")[4] == "no"


def test_a_failing_row_says_its_own_error(tmp_path: Path) -> None:
    page = write(tmp_path, ours_wrong=100, ours_ms=1.0)
    failed = line_of(page, "| torchao PT2E").split(" | ")
    assert failed[2] == "failed: RuntimeError: no / kernel"
    assert failed[5] == "failed: RuntimeError: at 224 as well"


def test_the_packed_file_has_the_time_of_the_file_inside(tmp_path: Path) -> None:
    write(tmp_path, ours_wrong=100, ours_ms=1.0)
    with (tmp_path / "alexnet.jsonl").open("a") as file:
        file.write(json.dumps(accuracy("ours-packed", 100)) + "\n")
    write_report(tmp_path)
    cells = line_of((tmp_path / "README.md").read_text(), "| **Secateur** packed").split(" | ")
    assert cells[5] == "1.00 (1.00 to 1.00), that of the file inside"


def test_a_newer_record_of_a_row_replaces_the_older(tmp_path: Path) -> None:
    write(tmp_path, ours_wrong=200, ours_ms=1.0)
    with (tmp_path / "alexnet.jsonl").open("a") as file:
        file.write(json.dumps(accuracy("ours-int8", 100)) + "\n")
    write_report(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert line_of(page, "| **Secateur** pruned and int8").split(" | ")[2].startswith("95.00 [")


def test_aims_of_speed_are_not_missed_where_no_time_was_measured(tmp_path: Path) -> None:
    rows = [accuracy("eager", 100), accuracy("ours-int8", 101)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Accuracy alone: no time was measured." in text
    assert "missed" not in text
