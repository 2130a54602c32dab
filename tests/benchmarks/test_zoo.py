"""Networks of torchvision as they are; the others are in docs/networks.md."""

import copy

import pytest
import torch
import torchvision.models
from torch import nn

import secateur
from helpers.odd_networks import assert_same
from secateur.benchmarking.cost import parameters
from secateur.pruning.find import find_prunable

SMALL = [
    "squeezenet1_1",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
]


@torch.no_grad()
def build(name):
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(num_classes=20)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    coarse = torch.randn(4, 3, 5, 5) * torch.tensor([0.5, 1, 1.5, 2]).view(4, 1, 1, 1)
    images = nn.functional.interpolate(coarse, (64, 64), mode="bilinear")
    network.train()(images)
    return network.eval(), images


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_half_of_a_network(name):
    network, images = build(name)
    plan = secateur.plan_removal(network, images, 0.5, "random", round_to=1)
    masked, removed = secateur.apply_masks(network, plan), secateur.remove(network, plan)
    assert parameters(removed) < 0.5 * parameters(network)
    assert_same(masked, removed, images, within=1e-4)
    doubles = copy.deepcopy(removed).double()
    assert_same(masked.double(), doubles, images.double(), within=1e-9)
    removed.train()(images).square().mean().backward()
    assert all(parameter.grad is not None for parameter in removed.parameters())


@pytest.mark.parametrize(
    ("name", "groups"), [("resnet18", 12), ("resnext50_32x4d", 21), ("mobilenet_v2", 25)]
)
def test_nothing_of_a_network_is_protected_but_its_classes(name, groups):
    with torch.device("meta"):
        network = getattr(torchvision.models, name)()
    prunable = find_prunable(network, torch.zeros(1, 3, 64, 64))
    assert len(prunable.groups) == groups
    assert [layer.reason for layer in prunable.protected] == ["they are the network's output"]
    assert not prunable.unfollowed


def test_convnext_shrinks_in_its_stages_and_in_its_blocks():
    with torch.device("meta"):
        network = torchvision.models.convnext_tiny()
    prunable = find_prunable(network, torch.zeros(1, 3, 64, 64))
    assert len(prunable.groups) == 18 + 4  # one a block, one a stage
    assert [layer.reason for layer in prunable.protected] == ["they are the network's output"]
