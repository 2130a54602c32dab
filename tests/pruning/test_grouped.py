"""Grouped convolutions that lose channels within each group."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from helpers.odd_networks import (
    Net,
    ShuffleV1,
    SplitAttention,
    assert_same,
    batch,
    conv,
    lively,
    shuffled,
    tail,
)
from secateur.benchmarking.cost import macs
from secateur.pruning.costs import Costs
from secateur.pruning.find import find_prunable
from secateur.pruning.geometry import Geometry
from secateur.pruning.plan import Plan
from secateur.pruning.surgery import rebuild

IMAGES = batch(3, 8, 8)


def resnext() -> nn.Module:
    torch.manual_seed(0)
    layers = (conv(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 32, groups=4),
              nn.BatchNorm2d(32), nn.ReLU(), conv(32, 8, 1), nn.ReLU(), tail(8))  # fmt: skip
    return lively(nn.Sequential(*layers), IMAGES)


def halved(network: nn.Module, **options) -> tuple[Plan, nn.Module]:
    options = {"importance": "random", "round_to": 1, **options}
    plan = Plan.from_json(secateur.plan_removal(network, IMAGES, 0.5, **options).to_json())
    small = secateur.remove(network, plan)
    assert_same(secateur.apply_masks(network, plan), small, IMAGES)
    return plan, small


def test_each_group_loses_the_same_of_its_inputs_and_as_many_outputs() -> None:
    _, small = halved(resnext(), grouped="width")
    layer = small[3]
    assert (layer.groups, layer.in_channels, layer.out_channels) == (4, 8, 16)
    assert layer.weight.shape == (16, 2, 3, 3)
    _, small = halved(resnext())
    assert (small[3].groups, small[3].weight.shape) == (2, (16, 4, 3, 3))


def test_costs_and_geometry_count_groups_that_stay() -> None:
    network = resnext()
    prunable = find_prunable(network, IMAGES, grouped="width")
    widths = {group.name: group.width(0.5) for group in prunable.groups}
    _, small = halved(network, grouped="width")
    assert Costs(network, prunable, "macs").at(widths) == macs(small, (3, 8, 8))
    (layer,) = (each for each in Geometry(network, prunable).layers(widths) if each.groups > 1)
    assert (layer.inputs, layer.outputs, layer.groups) == (8, 16, 4)


def test_plans_within_groups_and_of_whole_groups_follow_one_another() -> None:
    network = resnext()
    first, small = halved(network, grouped="width")
    second, smaller = halved(small)
    assert (smaller[3].groups, smaller[3].weight.shape) == (2, (8, 2, 3, 3))
    again = rebuild(network, first.then(second))
    again.load_state_dict(smaller.state_dict())
    assert_same(again, smaller, IMAGES, 0)


def test_a_group_in_which_only_the_outputs_can_shrink_stays_a_group() -> None:
    for channels in (3, 6):
        network = nn.Sequential(conv(channels, 12, groups=3), nn.ReLU(), conv(12, 8), tail(8))
        images = batch(channels, 8, 8)
        network = lively(network, images)
        plan = secateur.plan_removal(network, images, 0.5, "random", round_to=1)
        small = secateur.remove(network, plan)  # all of the image is kept, and so are the groups
        assert_same(secateur.apply_masks(network, plan), small, images)
        assert (small[0].groups, small[0].weight.shape) == (3, (6, channels // 3, 3, 3))


@pytest.mark.parametrize("groups", [2, 4])
def test_a_shuffle_between_grouped_convolutions(groups) -> None:
    torch.manual_seed(0)
    block = Net(
        lambda n, x: n.c(n.norm(n.b(shuffled(n.a(x).relu(), groups)))).relu(),
        a=conv(16, 32, 1, groups=groups), b=conv(32, 32, groups=32), norm=nn.BatchNorm2d(32),
        c=conv(32, 16, 1, groups=groups),
    )  # fmt: skip
    network = lively(nn.Sequential(conv(3, 16), nn.ReLU(), block, tail(16)), IMAGES)
    _, small = halved(network, grouped="width")
    assert (small[2].a.groups, small[2].c.groups) == (groups, groups)
    assert small[2].a.out_channels == 16
    assert small[2].a.weight.shape[1] == 16 // groups // 2


@pytest.mark.parametrize("make", [ShuffleV1, SplitAttention])
def test_where_no_whole_group_can_go_channels_within_them_do(make) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), make(), conv(16, 16), tail(16)
    )
    network = lively(network, IMAGES)
    _, small = halved(network)
    assert small[3].a.groups == 2
    assert small[3].a.weight.numel() <= 0.3 * network[3].a.weight.numel()


def test_a_number_of_groups_that_forward_keeps_stays() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 4, 3, 3) / 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, padding=1, groups=4)

    torch.manual_seed(0)
    network = lively(nn.Sequential(conv(3, 16), nn.ReLU(), Written(), conv(16, 8), tail(8)), IMAGES)
    _, small = halved(network)
    assert small[2].weight.shape == (8, 2, 3, 3)
