"""Whole residual blocks as units of removal."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

import secateur
from helpers.odd_networks import assert_same, batch, lively
from secateur.pruning.blocks import find_blocks, plan_blocks
from secateur.pruning.plan import Plan, Shortcut
from secateur.pruning.surgery import rebuild, shrink_optimizer, shrink_state

IMAGES = batch(3, 32, 32)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return lively(torchvision.models.resnet18(num_classes=5).eval(), IMAGES)


def test_blocks_that_add_to_their_input_are_found() -> None:
    mobile = torchvision.models.mobilenet_v2().eval()
    assert find_blocks(mobile, IMAGES[:1]) == [
        Shortcut(module=f"features.{n}") for n in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
    ]
    encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2, norm_first=True, batch_first=True))
    assert find_blocks(encoder, torch.zeros(1, 4, 8)) == [Shortcut(module="0")]
    assert find_blocks(nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1))), IMAGES[:1]) == []


def test_blocks_that_project_their_input_are_found_with_what_stays() -> None:
    path = {"path": ("downsample", "relu")}
    assert find_blocks(resnet(), IMAGES[:1]) == [
        Shortcut(module=f"layer{n}.{b}", **(path if n > 1 and b == 0 else {}))
        for n in (1, 2, 3, 4)
        for b in (0, 1)
    ]
    regnet = torchvision.models.regnet_x_400mf().eval()
    first = find_blocks(regnet, IMAGES[:1])[0]
    assert first == Shortcut(module="trunk_output.block1.block1-0", path=("proj", "activation"))


class Written(nn.Module):
    """A block as many write it: a projection, and a ReLU that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


def test_a_relu_that_is_no_module_follows_what_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Written(), nn.Conv2d(8, 8, 3))
    found = find_blocks(network, IMAGES[:1])
    assert found == [Shortcut(module="1", path=("shortcut",), relu=True)]


def test_the_branch_of_a_projecting_block_leaves_as_its_mask_does() -> None:
    network = resnet()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(("layer3.0.conv", "layer3.0.bn")):
                parameter.mul_(0.1)
    plan = Plan.from_json(plan_blocks(network, IMAGES[:1], 1).to_json())
    assert [short.module for short in plan.shortcuts] == ["layer3.0"]
    small, masked = secateur.remove(network, plan), secateur.apply_masks(network, plan)
    assert_same(small, masked, IMAGES, 1e-12)
    names = {name for name, _ in small.named_parameters() if name.startswith("layer3.0")}
    assert names == {f"layer3.0.downsample.{n}" for n in ("0.weight", "1.weight", "1.bias")}
    again = rebuild(resnet(), plan)
    again.load_state_dict(shrink_state(network.state_dict(), plan))
    assert_same(again, small, IMAGES, 0)
    both = secateur.plan_removal(small, IMAGES[:1], 0.5, round_to=1)
    composed = plan.then(both)
    assert_same(secateur.remove(network, composed), secateur.remove(small, both), IMAGES, 1e-12)


def test_those_that_matter_least_leave_as_their_masks_do() -> None:
    network = resnet()
    with torch.no_grad():
        for name in ("layer1.1", "layer3.1"):
            for parameter in network.get_submodule(name).parameters():
                parameter.mul_(0.1)
    plan = Plan.from_json(plan_blocks(network, IMAGES[:1], 2).to_json())
    assert plan.blocks == ("layer1.1", "layer3.1")
    small, masked = secateur.remove(network, plan), secateur.apply_masks(network, plan)
    assert_same(small, masked, IMAGES, 1e-12)
    again = rebuild(resnet(), plan)
    again.load_state_dict(shrink_state(network.state_dict(), plan))
    assert_same(again, small, IMAGES, 0)


def test_blocks_and_channels_leave_together() -> None:
    network = resnet()
    plan = secateur.plan_removal(network, IMAGES[:1], 0.5, depth=0.4, round_to=1)
    assert len(plan.blocks) + len(plan.shortcuts) == 3
    small, masked = secateur.remove(network, plan), secateur.apply_masks(network, plan)
    assert_same(small, masked, IMAGES, 1e-12)
    assert small.fc.in_features == 256
    narrow = secateur.plan_removal(network, IMAGES[:1], 0.5, round_to=1)
    smaller = secateur.remove(network, narrow)
    later = plan_blocks(smaller, IMAGES[:1], 3)
    assert_same(
        secateur.remove(smaller, later), secateur.remove(network, narrow.then(later)), IMAGES, 1e-12
    )


def test_optimizers_go_on_without_the_blocks() -> None:
    network = resnet().train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(IMAGES).sum().backward()
    optimizer.step()
    plan = plan_blocks(network, IMAGES[:1], 2, "taylor")
    smaller = secateur.remove(network, plan)
    again = shrink_optimizer(optimizer, network, smaller, plan)
    assert len(again.param_groups[0]["params"]) == len(list(smaller.parameters()))


def test_one_block_stays_and_other_criteria_are_refused() -> None:
    plan = plan_blocks(resnet(), IMAGES[:1], 9, "random")
    assert len(plan.blocks) + len(plan.shortcuts) == 7
    with pytest.raises(ValueError, match="importance of blocks must be one of l1, l2, taylor"):
        plan_blocks(resnet(), IMAGES[:1], 1, "batch_norm")
