from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import NetworkError
from secateur.pruning.masks import Masks, weight_masks
from secateur.pruning.reinit import reinitialize


def network_in_use() -> tuple[nn.Sequential, Masks]:
    network = nn.Sequential(
        *(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(64, 200),
    )
    for _ in range(2):
        network(torch.randn(4, 3, 5, 5) + 1)
    nn.init.uniform_(network[1].weight)
    masks = weight_masks(network, ["0", "4"], 0.75)
    masks.apply_(network)
    return network, masks


def test_what_remains_is_uniform_in_the_bound_of_its_remaining_inputs() -> None:
    network, masks = network_in_use()
    fresh = reinitialize(network, masks, seed=3)
    assert masks.in_force(fresh)
    for layer, near in ((0, 0.06), (4, 0.02)):
        kept = masks.tensors[f"{layer}.weight"].flatten(1)
        bounds = (1 / kept.sum(1).clamp(min=1)).sqrt()
        relative = (fresh[layer].weight.flatten(1) / bounds[:, None])[kept]
        assert 0.99 < relative.abs().max() <= 1 + 1e-6
        assert relative.abs().mean().item() == pytest.approx(0.5, abs=near)  # uniform, not normal
        assert relative.std().item() == pytest.approx(3**-0.5, abs=near)


def test_batch_norm_begins_again_and_the_original_is_left_alone() -> None:
    network, masks = network_in_use()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fresh = reinitialize(network, masks, seed=3)
    assert fresh[1].weight.eq(1).all()
    assert fresh[1].bias.count_nonzero() == 0
    assert fresh[1].running_mean.count_nonzero() == 0
    assert fresh[1].running_var.eq(1).all()
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_the_seed_decides_the_draw_and_no_other_draw_is_disturbed() -> None:
    network, masks = network_in_use()
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    a, b, c = (reinitialize(network, masks, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(a[4].weight, b[4].weight)
    assert not torch.equal(a[4].weight, c[4].weight)


def test_a_layer_that_cannot_be_drawn_anew_is_refused() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(NetworkError, match=r"cannot re-initialize weights \(1\).* found Scale"):
        reinitialize(nn.Sequential(nn.Linear(1, 1), Scale()), Masks({}), 0)
