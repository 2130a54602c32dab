"""A scan that is called a demonstration must have the fault that it demonstrates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.tiny_networks import shufflenet
from secateur.data import Images
from secateur.environment import versions
from secateur.pruning.removal import plan_removal
from secateur.pruning.surgery import apply_masks
from secateur.recipe import load_recipe
from secateur.study import demonstration

SHAPE = (1, 28, 28)


def zeros(network: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in network.parameters() if p.ndim > 1)


def test_what_is_evaluated_is_the_network_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    network, evaluated = shufflenet(channels=1), []

    def correctness(looked_at: nn.Module, images: Images, _: object) -> torch.Tensor:
        evaluated.append(zeros(looked_at))
        return torch.ones(len(images), dtype=torch.bool)

    monkeypatch.setattr(demonstration, "correctness", correctness)
    about = {"versions": versions(), "threads": 1, "processor": "a CPU", "commit": "0"}
    images = Images(torch.zeros(8, *SHAPE, dtype=torch.uint8), torch.zeros(8, dtype=torch.long), ())
    pipeline = SimpleNamespace(
        recipe=load_recipe("quickstart", ["scan.fractions=[0.2, 0.5]"]),
        load_network=lambda _: network,
        stage=lambda _: SimpleNamespace(manifest=about),
        parts=(None, images),
        prepare=None,
        input_shape=SHAPE,
        device=torch.device("cpu"),
    )
    records = demonstration.scan_without_masks(pipeline)  # type: ignore[arg-type]
    assert [record.at["fraction"] for record in records] == [0.2, 0.5]
    assert evaluated == [zeros(network)] * 2
    plan = plan_removal(network, torch.zeros(1, *SHAPE), fraction=0.5)
    assert zeros(apply_masks(network, plan)) > zeros(network)  # there were masks to be in force
