"""The tables of compressed networks say what their records say; no peer is needed for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common.records import pack
from benchmarks.compress_tables import COMPRESSED, PEERS, TIMES, page
from benchmarks.peers.report import failure
from benchmarks.peers.rows import ALL_CHANNELS

IMAGES = 2000
NETWORK = {"network": "resnet18"}


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 1, "high": value + 1}


def write(
    folder: Path, wrong: dict[str, int], ms: dict[str, float], packed: int = 5_000
) -> list[str]:
    """The page of one network: images each row gets wrong, and its time."""
    variants = [
        {"top1": estimate(90.0), "drop": estimate(0.5), "size_bytes": size}
        for size in (40_000, 10_000, packed)
    ]
    ladder = [{"latency": estimate(time)} for time in (10.0, 4.0, 1.0)]
    network = NETWORK | {"variants": variants, "ladder": ladder, "verdict": {"status": "met"}}
    rows: list[dict[str, Any]] = [
        NETWORK
        | {"row": row, "bytes": 10_000, "test_images": IMAGES}
        | {"right": pack(np.arange(IMAGES) >= count)}
        for row, count in wrong.items()
    ]
    rows.append(NETWORK | {"row": "torch-pruning", "error": "ValueError: no tracing"})
    timed = {row: {"milliseconds": [time] * 20} for row, time in ms.items()}
    for name, lines in (
        (COMPRESSED, [network]), (PEERS, rows), (TIMES, [NETWORK | {"rows": timed}]),
    ):  # fmt: skip
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return list(page(folder))


WRONG = {"eager": 200, "quantize_static-per-channel": 210, "nncf": 300, "ours-int8": 204}
MS = {"eager": 10.0, "quantize_static-per-channel": 3.0, "nncf": 0.5, "ours-int8": 1.0}


def verdict(lines: list[str]) -> list[str]:
    """Cells of the comparison with the best peer."""
    start = next(n for n, line in enumerate(lines) if "Best peer" in line)
    return lines[start + 2].strip("| ").split(" | ")


def test_ours_is_compared_with_the_fastest_that_lost_little_enough(tmp_path: Path) -> None:
    cells = verdict(write(tmp_path, WRONG, MS))
    assert "`quantize_static`" in cells[1]  # NNCF is faster and lost 5 points
    assert cells[2].startswith("+0.30 [")
    assert cells[3:] == ["2.00×", "3.00× [3.00, 3.00]", "yes"]


@pytest.mark.parametrize(
    ("wrong", "time", "packed", "words"),
    [
        (212, 1.0, 5_000, "no: 0.10 points less accurate"),
        (204, 6.0, 5_000, "no: 2.00× as slow"),
        (204, 1.0, 20_000, "no: 2.00× as large"),
    ],
)
def test_says_by_how_much_ours_is_behind(
    tmp_path: Path, wrong: int, time: float, packed: int, words: str
) -> None:
    wrongs, times = WRONG | {"ours-int8": wrong}, MS | {"ours-int8": time}
    cells = verdict(write(tmp_path, wrongs, times, packed))
    assert cells[-1] == words


def test_the_faster_of_secateur_s_files_is_compared(tmp_path: Path) -> None:
    faster = {"ours-int8-openvino": 0.5}
    cells = verdict(write(tmp_path, WRONG | {"ours-int8-openvino": 204}, MS | faster))
    assert cells[4] == "6.00× [6.00, 6.00]"


def test_a_failure_is_the_row_s_text(tmp_path: Path) -> None:
    lines = write(tmp_path, WRONG, MS)
    (row,) = [line for line in lines if line.startswith("| Torch-Pruning")]
    assert row.endswith("failed: ValueError: no tracing |")
    assert failure({"error": f"ValueError: {ALL_CHANNELS}"}) == f"not run: {ALL_CHANNELS}"


def test_without_times_the_most_accurate_peer_counts(tmp_path: Path) -> None:
    cells = verdict(write(tmp_path, WRONG, {}))
    assert "`quantize_static`" in cells[1]
    assert cells[4:] == ["–", "yes"]
