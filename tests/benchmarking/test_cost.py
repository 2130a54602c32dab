from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import nn

from secateur.benchmarking.cost import macs, nonzero_parameters, parameters


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # Each of 8 x 5 x 5 outputs reads 3 x 3 x 3 inputs.
        (nn.Conv2d(3, 8, 3), (3, 7, 7), 8 * 5 * 5 * 3 * 3 * 3),
        # Stride 2 with padding 1 turns 9 x 7 into 5 x 4.
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 9, 7), 8 * 5 * 4 * 27),
        # Two groups: each output reads half of the 4 inputs.
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5), 6 * 3 * 3 * 2 * 9),
        # Depthwise: each output reads one input.
        (nn.Conv2d(6, 6, (3, 5), groups=6, padding=(1, 2)), (6, 4, 4), 6 * 4 * 4 * 15),
        (nn.Conv1d(2, 4, 3), (2, 10), 4 * 8 * 2 * 3),
        # Transposed: each of 3 x 4 x 4 inputs is spread over 8 kernels of 2 x 2.
        (nn.ConvTranspose2d(3, 8, 2, stride=2), (3, 4, 4), 3 * 4 * 4 * 8 * 4),
        (nn.Linear(10, 7), (10,), 70),
        (nn.Linear(10, 7), (5, 10), 5 * 70),
        (nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)), (2, 4, 4), 0),
    ],
)
def test_macs_by_hand(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert macs(layer, shape) == expected


def test_macs_count_every_call_and_sum_over_layers() -> None:
    shared = nn.Conv2d(2, 2, 1)
    network = nn.Sequential(shared, shared, nn.Flatten(), nn.Linear(18, 4))
    assert macs(network, (2, 3, 3)) == 2 * (2 * 9 * 2) + 18 * 4


def test_macs_leave_the_network_alone() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).double().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    macs(network, (2, 3, 3))
    assert network.training
    assert network[1].training
    assert not network[0]._forward_hooks
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_parameters_count_shared_ones_once_and_tell_zeros_apart() -> None:
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.weight[0, :2] = 0
        layer.bias.fill_(0.5)
    network = nn.Sequential(layer, layer, nn.BatchNorm1d(3, affine=False))
    assert parameters(network) == 12
    assert nonzero_parameters(network) == 10


@pytest.mark.parametrize(
    ("name", "count"),
    [("mobilenet_v2", 2_236_682), ("shufflenet_v2_x1_0", 1_263_854), ("alexnet", 57_044_810)],
)
def test_parameters_of_torchvision_networks(name: str, count: int) -> None:
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(num_classes=10)
    assert parameters(network) == count


def test_resnet18() -> None:
    with torch.device("meta"):
        network = torchvision.models.resnet18()
    assert parameters(network) == 11_689_512
    assert macs(network, (3, 224, 224)) == 1_814_073_344
