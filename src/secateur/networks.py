"""torchvision's networks, with the first layers that a small image needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from secateur import recipe
from secateur.errors import NetworkError


def build_network(config: recipe.Network, channels: int, classes: int, seed: int = 0) -> nn.Module:
    """Build an untrained network.

    Args:
        config: Name, stem and resolution.
        channels: Input channels, 1 or more; other than 3 replaces the first convolution.
        classes: Number of outputs.
        seed: Decides the initial weights.

    Raises:
        NetworkError: The resolution is too small for the network and stem.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _BUILDERS[config.name](config, channels, classes)
    if not _runs(network, channels, config.resolution):
        smallest = next(
            side for side in range(config.resolution, 1025) if _runs(network, channels, side)
        )
        raise NetworkError(
            f"resolution too small for {config.name} with stem {config.stem!r}",
            where="network.resolution",
            expected=f"at least {smallest}",
            found=config.resolution,
        )
    return network


def _runs(network: nn.Module, channels: int, resolution: int) -> bool:
    """Try the geometry on the meta device: shapes alone, no arithmetic."""
    from torch.func import functional_call

    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
    }
    image = torch.empty(1, channels, resolution, resolution, device="meta")
    training = network.training
    try:
        with torch.no_grad():
            functional_call(network.eval(), state, (image,))
    except RuntimeError:
        return False
    finally:
        network.train(training)
    return True


def _first_convolution(old: nn.Conv2d, channels: int, stride: int | None = None) -> nn.Conv2d:
    """Return ``old`` drawn anew with other input channels or another stride, as it was drawn."""
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=stride or old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    if old.bias is None:  # torchvision's MobileNetV2 draws by fan-out; the others by default
        nn.init.kaiming_normal_(new.weight, mode="fan_out")
    return new


def _mobilenet_v2(config: recipe.Network, channels: int, classes: int) -> nn.Module:
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(num_classes=classes)
    stem = network.features[0]
    if config.stem != "paper" or channels != 3:
        stride = 2 if config.stem == "paper" else 1
        stem[0] = _first_convolution(stem[0], channels, stride)
    if config.stem == "cifar":
        network.features[2].conv[1][0].stride = (1, 1)
    return network


def _shufflenet_v2(config: recipe.Network, channels: int, classes: int) -> nn.Module:
    from torchvision.models import shufflenet_v2_x1_0

    network = shufflenet_v2_x1_0(num_classes=classes)
    if config.stem != "paper" or channels != 3:
        stride = 2 if config.stem == "paper" else 1
        network.conv1[0] = _first_convolution(network.conv1[0], channels, stride)
    if config.stem == "cifar":
        network.maxpool = nn.Identity()
    return network


def _alexnet(config: recipe.Network, channels: int, classes: int) -> nn.Module:
    from torchvision.models import alexnet

    network = alexnet(num_classes=classes)
    if channels != 3:
        network.features[0] = _first_convolution(network.features[0], channels)
    if config.stem != "paper":
        # An 11x11 convolution of stride 4 leaves nothing of a small image. AlexNet has no further
        # reduction to relax, so both stems mean stride 1: 32x32 leaves 2x2 before the classifier.
        network.features[0].stride = (1, 1)
    return network


_BUILDERS: dict[str, Callable[[recipe.Network, int, int], nn.Module]] = {
    "mobilenet_v2": _mobilenet_v2,
    "shufflenet_v2_x1_0": _shufflenet_v2,
    "alexnet": _alexnet,
}
