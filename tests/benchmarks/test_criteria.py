"""The comparison of criteria: cells, curvature scores and the page."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import criteria
from benchmarks.criteria import Cell, Growing, against, cells, curvature_scores, page
from helpers.odd_networks import lively
from secateur.models.small_resnet import small_resnet
from secateur.pruning.find import find_prunable
from secateur.pruning.masks import Masks


def record(criterion: str, seed: int, right: list[bool], scope: str = "local") -> dict:
    return {
        "criterion": criterion, "scope": scope, "seed": seed, "compared": len(right), "images": 7,
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(), "macs_left": 0.35,
        "right_before_retraining": 1, "parameters_left": 0.4, "processor": "a processor",
        "versions": {"torch": "2"}, "commit": "abc",
    }  # fmt: skip


def test_every_criterion_is_compared_in_both_scopes_with_three_seeds() -> None:
    every = list(cells())
    assert len(every) == len(set(every)) == 9 * 2 * 3
    assert Cell("random", "global", 2) in every


def test_differences_are_paired_by_seed_and_image() -> None:
    records = [record("l2", 0, [True, True, False, True]), record("l2", 1, [True] * 4)]
    others = [record("random", 0, [True, False, False, True]), record("random", 2, [False] * 4)]
    mean, low, high = against(records, others)
    assert mean == 25
    assert high - mean == pytest.approx(mean - low)
    assert high - mean == pytest.approx(3.182446 * 25, rel=1e-5)  # t of 3 degrees, times 50 / 2
    assert against(records, others[1:]) is None


def test_the_page_ranks_what_is_measured() -> None:
    assert "Nothing is measured yet" in page([])
    rows = [record("none", 0, [True] * 4, "none")]
    rows += [record("random", s, [True, False, False, False]) for s in (0, 1)]
    rows += [record("taylor", s, [True, True, s == 0, False]) for s in (0, 1)]
    lines = page(rows).splitlines()
    assert any(line.startswith("Unpruned: 100.00 (1). a processor") for line in lines)
    ranked = [line for line in lines if line.startswith("| `")]
    assert [line.split("`")[1] for line in ranked] == ["taylor", "random"]
    assert "| 62.50 ± 17.68 (2) | 25.0 | +37.50 [" in ranked[0]
    assert any(line.endswith("at 95 %: none.") for line in lines)
    rows += [
        record("l2", 0, [False] * 4),
        record("l1", 0, [True] * 4),
        record("fpgm", 0, [False] * 4),
    ]
    assert any(line.endswith("at 95 %: `l1` (local).") for line in page(rows).splitlines())


def test_a_channel_whose_output_is_never_read_costs_nothing() -> None:
    torch.manual_seed(0)
    network = lively(small_resnet(10, 3), torch.randn(8, 3, 32, 32).double()).float().eval()
    with torch.no_grad():
        network.stage1.conv2.weight[:, 5] = 0
        network.stage3.bn1.weight[7] = network.stage3.bn1.bias[7] = 0
    prunable = find_prunable(network, torch.zeros(1, 3, 32, 32))
    scores = curvature_scores(network, prunable, torch.randn(16, 3, 32, 32))
    assert set(scores) == {group.name for group in prunable.groups}
    assert scores["stage1.conv1"].argmin() == 5
    assert scores["stage1.conv1"][5] == scores["stage3.conv1"][7] == 0
    assert np.sort(scores["stage1.conv1"])[1] > 0


def test_the_penalty_grows_on_removed_weights_only() -> None:
    network = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    penalty = Growing(Masks({"weight": torch.tensor([[True, True], [False, False]])}), steps=4)
    images, labels = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    losses = [penalty(network, images, labels) for _ in range(4)]
    base = float(torch.nn.functional.cross_entropy(torch.zeros(1, 2), labels, label_smoothing=0.1))
    assert [round(loss.item() - base, 4) for loss in losses] == [6.25, 12.5, 18.75, 25.0]
    losses[-1].backward()
    assert network.weight.grad.tolist() == [[0, 0], [6, 8]]  # PENALTY * weight


def test_cells_that_are_there_are_not_run_again(tmp_path: Path, monkeypatch) -> None:
    asked = []

    class Nothing:
        def __init__(self, seed: int, data: Path, images: int) -> None:
            self.seed, self.compared, self.network = seed, [None] * 4, None

        def right(self, network: object) -> np.ndarray:
            return np.ones(4, bool)

    def run(cell: Cell, reference: Nothing) -> dict:
        asked.append(cell)
        return record(cell.criterion, cell.seed, [True] * 4, cell.scope)

    monkeypatch.setattr(criteria, "Reference", Nothing)
    monkeypatch.setattr(criteria, "run", run)
    path = tmp_path / "cells.jsonl"
    criteria.measure(path, tmp_path, 7)
    lines = path.read_text().splitlines()
    assert len(lines) == 54 + 3
    path.write_text("\n".join(lines[:10]) + "\n")
    asked.clear()
    criteria.measure(path, tmp_path, 7)
    assert len(asked) == 54 - 9
    assert sorted(map(str, map(json.loads, path.read_text().splitlines()))) == sorted(
        map(str, map(json.loads, lines))
    )
