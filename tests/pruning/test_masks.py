from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.errors import NetworkError, StoreError
from secateur.pruning.channels import Prunable
from secateur.pruning.find import find_prunable
from secateur.pruning.masks import Masks, group_masks, plan_masks, sparsity, weight_masks


def toy() -> tuple[nn.Sequential, Prunable]:
    """Four filters of norms 1, 2, 3, 4 (depthwise included) and eight weights 0 .. 7."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, groups=4),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([0.6, 1.2, 1.8, 2.4]).view(4, 1, 1, 1))
        network[3].weight.copy_(torch.tensor([0.8, 1.6, 2.4, 3.2]).view(4, 1, 1, 1))
        network[7].weight.copy_(torch.arange(8.0).view(2, 4))
    return network, find_prunable(network, torch.zeros(2, 1, 3, 3))


def half() -> tuple[nn.Sequential, Masks]:
    network, _ = toy()
    plan = secateur.plan_removal(network, torch.zeros(2, 1, 3, 3), 0.5, round_to=1)
    return network, plan_masks(network, plan)


# ---- of channels


def test_half_of_everything_in_ones_head() -> None:
    network, masks = half()
    owners = ("0", "1", "3", "4")
    assert set(masks.tensors) == {f"{o}.{p}" for o in owners for p in ("weight", "bias")} | {
        "7.weight"
    }
    for owner in owners:  # the whole group, biases and batch-norm's affine parts too
        for part in ("weight", "bias"):
            assert masks.tensors[f"{owner}.{part}"].flatten().tolist() == [False, False, True, True]
    assert (
        masks.tensors["7.weight"].tolist() == [[False, False, True, True]] * 2
    )  # and who reads it
    masks.apply_(network)
    assert network[7].weight.sum() == 2 + 3 + 6 + 7
    assert network[7].bias.count_nonzero() == 2
    assert network[4].running_var.count_nonzero() == 4  # statistics stay
    assert masks.sparsity() == 0.5


def test_some_units_of_a_group_have_the_same_masks_as_a_plan_without_them() -> None:
    network, prunable = toy()
    _, masks = half()
    gone = np.array([True, True, False, False])
    found = group_masks(network, prunable.group("0"), gone)
    assert set(found.tensors) == set(masks.tensors)
    assert all(torch.equal(mask, masks.tensors[name]) for name, mask in found.tensors.items())


def test_a_tensor_that_loses_on_both_axes_keeps_what_both_keep() -> None:
    network = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        for layer in network:
            layer.weight.copy_(torch.arange(1.0, layer.weight.numel() + 1).view_as(layer.weight))
    plan = secateur.plan_removal(network, torch.zeros(1, 1), 0.5, round_to=1)
    assert plan_masks(network, plan).tensors["1.weight"].tolist() == [[False, False], [False, True]]


# ---- of single weights


@given(fraction=st.floats(0, 0.999), width=st.integers(1, 60), ties=st.booleans())
@settings(deadline=None, max_examples=60)
def test_counts_are_exact_and_ties_go_by_index(fraction: float, width: int, ties: bool) -> None:
    network = nn.Sequential(nn.Linear(width, 3))
    if ties:
        nn.init.ones_(network[0].weight)
    before = network[0].weight.clone()
    mask = weight_masks(network, ["0"], fraction).tensors["0.weight"].flatten()
    assert int((~mask).sum()) == min(3 * width - 1, int(fraction * 3 * width + 1e-6))
    assert torch.equal(before, network[0].weight)
    if ties:  # those that go come first
        assert mask.int().diff().ge(0).all()
    elif not mask.all():
        weights = before.flatten().abs()
        assert weights[~mask].max() <= weights[mask].min()


@pytest.mark.parametrize(
    ("fraction", "gone"), [(0.29, 29), (0.57, 57), (0.7, 70), (0.999, 99), (1 - 1e-12, 99)]
)
def test_a_fraction_means_its_decimal_and_never_empties(fraction: float, gone: int) -> None:
    masks = weight_masks(nn.Sequential(nn.Linear(10, 10)), ["0"], fraction)
    assert int((~masks.tensors["0.weight"]).sum()) == gone
    network = nn.Sequential(nn.Conv2d(1, 100, 1), nn.Conv2d(100, 1, 1))
    (group,) = find_prunable(network, torch.zeros(1, 1, 1, 1)).groups
    assert group.width(fraction) == 100 - gone


def test_masks_only_shrink_even_where_masked_weights_grew_back() -> None:
    network, _ = toy()
    first = weight_masks(network, ["7"], 0.25)
    assert first.tensors["7.weight"].tolist() == [[False, False, True, True], [True] * 4]
    with torch.no_grad():
        network[7].weight[0, 0] = 100
    second = weight_masks(network, ["7"], 0.5, previous=first)
    assert second.tensors["7.weight"].tolist() == [[False] * 4, [True] * 4]
    assert second.shrinks(first)
    assert not first.shrinks(second)
    assert weight_masks(network, ["7"], 0.0, previous=second).shrinks(second)
    assert not Masks({}).shrinks(first)


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"fraction must be in \[0, 1\), found {fraction}"):
        weight_masks(toy()[0], ["7"], fraction)


def test_a_diverged_network_is_not_pruned() -> None:
    network, _ = toy()
    nn.init.constant_(network[7].weight, float("nan"))
    with pytest.raises(NetworkError, match="not finite"):
        weight_masks(network, ["7"], 0.5)


def test_sparsity_counts_the_zeros_there_are() -> None:
    network, _ = toy()
    assert sparsity(network, ["7.weight"]) == 1 / 8  # the weight 0
    assert sparsity(network, ["7.weight", "0.weight", "3.weight"]) == 1 / 16
    weight_masks(network, ["7"], 0.5).apply_(network)
    assert sparsity(network, ["7.weight"]) == 1 / 2


# ---- masks


def test_in_force_sees_a_single_weight_that_came_back() -> None:
    network, masks = half()
    assert not masks.in_force(network)
    masks.apply_(network)
    assert masks.in_force(network)
    with torch.no_grad():
        network[1].bias[0] = float("nan")
    assert not masks.in_force(network)


def test_masks_refuse_what_does_not_fit() -> None:
    network, _ = toy()
    with pytest.raises(NetworkError, match=r"7.weight\): expected torch.bool, found torch.float32"):
        Masks({"7.weight": torch.ones(2, 4)})
    with pytest.raises(NetworkError, match=r"7.weight\): expected \(2, 4\), found \(2, 3\)"):
        Masks({"7.weight": torch.ones(2, 3, dtype=torch.bool)}).apply_(network)
    with pytest.raises(NetworkError, match=r"8.weight\): expected a parameter, found none"):
        Masks({"8.weight": torch.ones(2, 3, dtype=torch.bool)}).in_force(network)


def test_masks_are_frozen() -> None:
    masks = Masks({"a": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(TypeError):
        masks.tensors["a"] = torch.zeros(1, dtype=torch.bool)  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        masks.tensors = {}  # type: ignore[misc]


def test_masks_come_back_from_disk(tmp_path: Path) -> None:
    _, masks = half()
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors")
    assert set(again.tensors) == set(masks.tensors)
    assert all(torch.equal(masks.tensors[name], again.tensors[name]) for name in masks.tensors)
    (tmp_path / "masks.safetensors").write_bytes(b"no")
    with pytest.raises(StoreError, match="cannot read masks"):
        Masks.load(tmp_path / "masks.safetensors")
