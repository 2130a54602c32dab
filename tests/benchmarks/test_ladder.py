"""The ladder's factors, verdicts and figure are computed from its records."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ladder_report import write_report

N = 10_000


def record(int8_ms: float, lost: int) -> dict[str, Any]:
    """A network whose rungs take 8, 4, 4, 2 and ``int8_ms``, and that loses some images."""
    turns = np.linspace(0.99, 1.01, 40)
    spent = {"eager": 8.0, "runtime": 4.0, "folded": 4.0, "pruned": 2.0, "int8": int8_ms}
    right = {name: np.arange(N) < 9200 - less
             for name, less in (("reference", 0), ("pruned", 0), ("quantized", lost))}  # fmt: skip
    return {
        "recipe": "mobilenet_v2-fashionmnist-quick", "recipe_id": "0", "seed": 0,
        "network": "mobilenet_v2", "dataset": "fashionmnist", "processor": "A CPU",
        "versions": {"torch": "2"}, "commit": "0", "threads": 2, "test_images": N, "sets": [],
        "geometry": "28x28 stem=paper",
        "right": {k: base64.b64encode(np.packbits(v).tobytes()).decode() for k, v in right.items()},
        "samples_ms": {key: (ms * turns).tolist() for key, ms in spent.items()},
        "bytes": {"eager": 8_000_000, "runtime": 8_000_000, "folded": 8_000_000,
                  "pruned": 2_000_000, "int8": 500_000, "packed": 100_000},
        "macs": {"dense": 300_000_000, "pruned": 75_000_000},
        "parameters": {"dense": 2_000_000, "pruned": 500_000},
        "operators": {"QLinearConv": {"count": 50, "ms": 0.9, "share": 0.9}},
        "ceilings": {"fp32_macs_per_second": 1e11, "int8_macs_per_second": 3e11,
                     "bytes_per_second": 1e10},
    }  # fmt: skip


def written(folder: Path, **values: Any) -> str:
    (folder / "measured.jsonl").write_text(json.dumps(record(**values)) + "\n")
    write_report(folder)
    assert (folder / "ladder.svg").read_text().startswith("<svg")
    return (folder / "README.md").read_text(encoding="utf-8")


def test_each_step_has_its_own_factor_and_they_multiply(tmp_path: Path) -> None:
    text = written(tmp_path, int8_ms=0.5, lost=10)
    rows = {
        line.split(" | ")[0]: line.split(" | ") for line in text.splitlines() if "| ..." in line
    }
    assert rows["| ... pruned"][3:5] == ["2.00× [2.00, 2.00]", "4.00× [4.00, 4.00]"]
    assert rows["| ... int8"][3:5] == ["4.00× [4.00, 4.00]", "16.0× [16.00, 16.00]"]
    assert rows["| ... packed"][3] == "same"
    assert rows["| ... packed"][6:] == ["5.00×", "80.0× |"]
    assert "300 M → 75.0 M MACs, 4.00× in theory, 2.00× [2.00, 2.00] measured" in text
    assert "150 GMAC/s, 50 % of the 300" in text  # 75 M in half a millisecond
    assert "1.00 GB/s, 10 % of the 10.0" in text  # 500 kB in half a millisecond


@pytest.mark.parametrize(
    ("int8_ms", "lost", "expected"),
    [
        (0.5, 10, "**reached**: the fastest rung is *int8*, 16.0× [16.00, 16.00], +0.10 points"),
        (0.5, 80, "**missed**: the fastest rung is *int8*, 16.0× [16.00, 16.00], +0.80 points"),
        (1.0, 10, "**missed**: the fastest rung is *int8*, 8.00× [8.00, 8.00], +0.10 points lost."),
        (4.0, 10, "**missed**: the fastest rung is *pruned*, 4.00× [4.00, 4.00], 0.00 points"),
        (0.5, 10, "No worse than 0.5 points at 95 %: **yes**"),
        (0.5, 80, "No worse than 0.5 points at 95 %: **no**"),
    ],
)
def test_verdicts_follow_from_the_numbers(
    tmp_path: Path, int8_ms: float, lost: int, expected: str
) -> None:
    assert expected in written(tmp_path, int8_ms=int8_ms, lost=lost)
