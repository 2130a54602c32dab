from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import NetworkError, StoreError
from secateur.pruning.channels import Prunable, find_prunable
from secateur.pruning.masks import Masks, effective_sparsity, make_masks


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


def kept_filters(masks: Masks) -> list[bool]:
    return masks.tensors["0.weight"].flatten().tolist()


def test_half_of_everything_in_ones_head() -> None:
    network, prunable = toy()
    masks = make_masks(network, prunable, 0.5)
    owners = ("0", "1", "3", "4")
    assert set(masks.tensors) == {f"{o}.{p}" for o in owners for p in ("weight", "bias")} | {
        "7.weight"
    }
    for owner in owners:  # the whole group, biases and batch-norm's affine parts too
        for part in ("weight", "bias"):
            assert masks.tensors[f"{owner}.{part}"].flatten().tolist() == [False, False, True, True]
    assert masks.tensors["7.weight"].tolist() == [[False] * 4, [True] * 4]
    masks.apply_(network)
    assert network[7].weight.sum() == 4 + 5 + 6 + 7
    assert network[7].bias.count_nonzero() == 2
    assert effective_sparsity(network, prunable) == 0.5
    assert masks.sparsity() == 0.5


def test_a_masked_channel_is_zero_after_batch_norm_whatever_its_statistics() -> None:
    network, prunable = toy()
    nn.init.uniform_(network[4].running_mean, 1, 2)
    nn.init.uniform_(network[4].bias, 1, 2)
    make_masks(network, prunable, 0.5).apply_(network)
    assert network[4].running_mean.count_nonzero() == 4  # statistics stay
    for mode in (True, False):
        channels = network.train(mode)[:5](torch.randn(2, 1, 3, 3))
        assert channels[:, :2].count_nonzero() == 0
        assert channels[:, 2:].count_nonzero() > 0


@given(
    fraction=st.floats(0, 0.999),
    width=st.integers(1, 40),
    round_to=st.sampled_from([1, 4, 8, 16]),
    ties=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_counts_are_exact_and_widths_rounded_up(
    fraction: float, width: int, round_to: int, ties: bool
) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)
    )
    if ties:
        nn.init.ones_(network[0].weight)
        nn.init.ones_(network[3].weight)
    prunable = find_prunable(network, torch.zeros(2, 1, 2, 2))
    masks = make_masks(network, prunable, fraction, round_to)
    stays = int(masks.tensors["0.weight"].sum())
    exact = max(1, width - int(fraction * width + 1e-6))
    assert exact <= stays < exact + round_to
    assert stays == width or stays % round_to == 0
    weights = masks.tensors["3.weight"]
    assert int((~weights).sum()) == min(3 * width - 1, int(fraction * 3 * width + 1e-6))
    if ties:  # by index: those that go come first
        assert weights.flatten().int().diff().ge(0).all()


@pytest.mark.parametrize(
    ("fraction", "gone"), [(0.29, 29), (0.57, 57), (0.7, 70), (0.999, 99), (1 - 1e-12, 99)]
)
def test_a_fraction_means_its_decimal_and_never_empties(fraction: float, gone: int) -> None:
    network = nn.Sequential(nn.Conv2d(1, 100, 1), nn.Conv2d(100, 1, 1))
    masks = make_masks(network, find_prunable(network, torch.zeros(1, 1, 1, 1)), fraction)
    assert int((~masks.tensors["0.weight"]).sum()) == gone


def test_a_mapping_prunes_what_it_names_alone() -> None:
    network, prunable = toy()
    masks = make_masks(network, prunable, {"7": 0.25})
    assert kept_filters(masks) == [True] * 4
    assert int((~masks.tensors["7.weight"]).sum()) == 2
    with pytest.raises(NetworkError, match=r"cannot be pruned \(3\): expected one of 0, 7"):
        make_masks(network, prunable, {"3": 0.5})
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        make_masks(network, prunable, 1.0)


def test_masks_only_shrink_even_where_masked_weights_grew_back() -> None:
    network, prunable = toy()
    first = make_masks(network, prunable, 0.25)
    with torch.no_grad():
        network[0].weight[0] = 100
        network[7].weight[0, 0] = 100
    second = make_masks(network, prunable, 0.5, previous=first)
    assert second.shrinks(first)
    assert not first.shrinks(second)
    assert kept_filters(second) == [False, False, True, True]
    assert int(second.tensors["7.weight"].sum()) == 4
    assert make_masks(network, prunable, 0.0, previous=second).shrinks(second)
    assert not Masks({}).shrinks(first)


def test_in_force_sees_a_single_weight_that_came_back() -> None:
    network, prunable = toy()
    masks = make_masks(network, prunable, 0.5)
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
    network, prunable = toy()
    network.to(memory_format=torch.channels_last)
    masks = make_masks(network, prunable, 0.5)
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors")
    assert set(again.tensors) == set(masks.tensors)
    assert all(torch.equal(masks.tensors[name], again.tensors[name]) for name in masks.tensors)
    (tmp_path / "masks.safetensors").write_bytes(b"no")
    with pytest.raises(StoreError, match="cannot read masks"):
        Masks.load(tmp_path / "masks.safetensors")


def test_a_diverged_network_is_not_pruned() -> None:
    network, prunable = toy()
    nn.init.constant_(network[7].weight, float("nan"))
    with pytest.raises(NetworkError, match="not finite"):
        make_masks(network, prunable, 0.5)


def test_effective_sparsity_counts_the_zeros_there_are() -> None:
    network, prunable = toy()
    assert effective_sparsity(network, prunable) == pytest.approx(1 / 16)  # the weight 0
    assert effective_sparsity(network, prunable, "0") == 0
    with torch.no_grad():
        network[3].weight[0] = 0  # depthwise counts with its producer; batch-norm does not
        network[1].weight[:] = 0
    assert effective_sparsity(network, prunable, "0") == 1 / 8
    assert effective_sparsity(network, prunable, "7") == 1 / 8
    with pytest.raises(NetworkError, match="cannot be pruned"):
        effective_sparsity(network, prunable, "1")
