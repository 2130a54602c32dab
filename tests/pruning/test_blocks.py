"""Whole residual blocks as units of removal."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import nn

import secateur
from helpers.odd_networks import assert_same, batch, lively
from secateur.pruning.blocks import find_blocks, plan_blocks
from secateur.pruning.plan import Plan
from secateur.pruning.surgery import rebuild, shrink_optimizer, shrink_state

IMAGES = batch(3, 32, 32)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return lively(torchvision.models.resnet18(num_classes=5).eval(), IMAGES)


def test_blocks_that_add_to_their_input_are_found() -> None:
    assert find_blocks(resnet(), IMAGES[:1]) == [f"layer{n}.{b}" for n in (1,) for b in (0, 1)] + [
        f"layer{n}.1" for n in (2, 3, 4)
    ]
    mobile = torchvision.models.mobilenet_v2().eval()
    assert find_blocks(mobile, IMAGES[:1]) == [
        f"features.{n}" for n in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
    ]
    encoder = nn.Sequential(nn.TransformerEncoderLayer(8, 2, norm_first=True, batch_first=True))
    assert find_blocks(encoder, torch.zeros(1, 4, 8)) == ["0"]
    assert find_blocks(nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1))), IMAGES[:1]) == []


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
    assert len(plan.blocks) == 2
    small, masked = secateur.remove(network, plan), secateur.apply_masks(network, plan)
    assert_same(small, masked, IMAGES, 1e-12)
    assert small.layer4[0].conv1.out_channels == 256
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
    assert len(plan_blocks(resnet(), IMAGES[:1], 9, "random").blocks) == 4
    with pytest.raises(ValueError, match="importance of blocks must be one of l1, l2, taylor"):
        plan_blocks(resnet(), IMAGES[:1], 1, "batch_norm")
