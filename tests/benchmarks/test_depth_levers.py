"""The comparison of levers: its cells, its page, and that it resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import depth
from benchmarks.common import records
from benchmarks.depth import Cell, Settings, cells, lost, page, run
from secateur.errors import NetworkError


def record(lever: str, target: float, seed: int, right: list[bool], ratio: float = 1.0) -> dict:
    return {
        "lever": lever, "target": target, "seed": seed, "ratio": ratio, "dataset": "fashionmnist",
        "epochs": 2, "images": 7, "compared": len(right), "right": records.pack(np.array(right)),
        "processor": "a processor",
    }  # fmt: skip


def test_every_lever_is_tried_at_every_target_with_three_seeds() -> None:
    every = list(cells())
    assert len(every) == len(set(every)) == 4 * 5 * 3
    assert {cell.lever for cell in every} == set(depth.RUNS) == set(depth.LEVERS)


def test_losses_are_paired_by_seed_and_image() -> None:
    whole = {s: record("none", 1.0, s, [True] * 4) for s in (0, 1)}
    rows = [record("width", 0.7, 0, [True, True, False, True]), record("width", 0.7, 1, [True] * 4)]
    mean, low, high = lost(rows, whole)
    assert mean == 12.5
    assert high - mean == pytest.approx(mean - low)
    assert high - mean == pytest.approx(3.182446 * 12.5, rel=1e-5)  # t of 3 degrees, 25 / 2


def test_the_page_compares_at_equal_accuracy() -> None:
    assert "Nothing is measured yet" in page([])
    rows = [record("none", 1.0, 0, [True] * 4)]
    rows.append(record("merging", 0.7, 0, [True] * 4, 0.69))
    rows.append(record("merging", 0.5, 0, [True, False, False, True], 0.5))
    rows.append(record("width", 0.7, 0, [False] * 4, 0.7))
    failed = record("blocks", 0.5, 0, [True] * 4)
    del failed["ratio"], failed["right"]
    lines = page([*rows, failed | {"error": "target cannot be reached"}]).splitlines()
    assert "| merging | 0.7 | 0.69 | +0.00 [+0.00, +0.00] | 1 |" in lines
    assert "| blocks | 0.5 | not reached | – | 1 |" in lines
    assert lines[-4:] == ["| blocks | – |", "| merging | 0.69 |", "| width | – |", "| joint | – |"]


class Nothing:
    """A reference that needs neither data nor training."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.seed, self.settings, self.prepare, self.network = seed, settings, None, None
        self.training, self.compared, self.layer_times = [None] * 7, [None] * 4, self

    def save(self) -> None:
        pass

    def ratio(self, network: object) -> float:
        return 0.7


def test_cells_that_are_there_are_not_run_again(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def make(reference: Nothing, target: float, epochs: int) -> None:
        asked.append((reference.seed, target))
        if target < 0.6:
            raise NetworkError("target cannot be reached")

    monkeypatch.setattr(depth, "Reference", Nothing)
    monkeypatch.setattr(depth, "correctness", lambda *_: np.ones(4, bool))
    monkeypatch.setattr(depth, "RUNS", dict.fromkeys(depth.LEVERS, make))
    settings = Settings(tmp_path, tmp_path, "fashionmnist", 7, 4, 2)
    depth.measure(settings)
    path = tmp_path / "cells.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 60 + 3
    assert sum("cannot be reached" in line for line in lines) == 12
    path.write_text("\n".join(lines[:10]) + "\n")
    asked.clear()
    depth.measure(settings)
    assert len(asked) == 60 - 9
    again = {(r["lever"], r["target"], r["seed"]) for r in records.read(path)}
    assert len(again) == len(path.read_text().splitlines()) == 63


def test_a_target_out_of_reach_is_recorded(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise NetworkError("target cannot be reached")

    monkeypatch.setattr(depth, "RUNS", {"blocks": fail})
    reference = Nothing(0, Settings(tmp_path, tmp_path, "cifar10", 7, 4, 2))
    assert run(Cell("blocks", 0.5, 0), reference)["error"] == "target cannot be reached"
