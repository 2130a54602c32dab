from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.models.build import build_network
from secateur.recipe import Network
from secateur.training.cpu import fast_layers


def passes(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of parameters and images."""
    network.zero_grad()
    images = images.clone().requires_grad_()
    outputs = network(images)
    (
        outputs.square() * torch.linspace(0.5, 2, outputs.numel()).view(outputs.shape)
    ).sum().backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    assert images.grad is not None
    return [outputs.detach(), images.grad, *gradients]


def check(network: nn.Module, images: Tensor, replaced: int) -> None:
    network, images = network.double(), images.double()
    expected = passes(network, images)
    with fast_layers(network):
        changed = [module for module in network.modules() if "forward" in vars(module)]
        assert len(changed) == replaced
        actual = passes(network, images)
    assert not any("forward" in vars(module) for module in network.modules())
    for one, other in zip(expected, actual, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_depthwise_layers_on_small_maps(side: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.Conv2d(6, 6, 3, 2, 1, groups=6))
    check(network, torch.randn(4, 6, side, side), replaced=2)


@pytest.mark.parametrize("side", [1, 16, 17])
@pytest.mark.parametrize("last", [False, True])
def test_1x1_layers_with_and_without_bias_in_both_layouts(side: int, last: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.Conv2d(8, 4, 1))
    images = torch.randn(3, 6, side, side)
    layout = torch.channels_last if last else torch.contiguous_format
    check(network, images.contiguous(memory_format=layout), replaced=2)


def test_other_layers_stay() -> None:
    network = nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 6, 1, stride=2), nn.Conv2d(6, 6, 1, padding=1)
    )
    check(network, torch.randn(2, 6, 7, 7), replaced=0)


@pytest.mark.parametrize("stem", ["paper", "cifar"])
def test_shufflenet_in_training_and_inference(stem: str) -> None:
    config = Network(name="shufflenet_v2_x1_0", stem=stem, resolution=32)  # type: ignore[arg-type]
    network = build_network(config, 1, 10).to(memory_format=torch.channels_last)
    images = torch.randn(8, 1, 32, 32).contiguous(memory_format=torch.channels_last)
    replaced = 16 + 19 + 36  # blocks, depthwise layers, 1x1 layers
    for training in (True, False):
        statistics = {k: v.clone() for k, v in network.state_dict().items()}
        check(network.train(training), images, replaced)
        network.load_state_dict(statistics)


def test_a_shuffled_map_stays_channels_last() -> None:
    config = Network(name="shufflenet_v2_x1_0", resolution=32)
    network = build_network(config, 1, 10).to(memory_format=torch.channels_last)
    maps = torch.randn(2, 24, 8, 8).contiguous(memory_format=torch.channels_last)
    with fast_layers(network):
        shuffled = network.stage2(maps)
    assert shuffled.is_contiguous(memory_format=torch.channels_last)
