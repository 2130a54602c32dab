"""torchvision's networks with first layers for small images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
    if not config.dropout:
        _let_through(network)
    normalized = config.batch_norm == "batch" or not _fix_batch_norm(network)
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
    if not normalized:
        _keep_variance(network, (_NOISE, channels, config.resolution, config.resolution), seed)
    return network


_NOISE = 16  # images of noise for scaling the initial weights


def _let_through(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _fix_batch_norm(network: nn.Module) -> int:
    """Replace each batch-norm by the identity, and return their number.

    A frozen batch-norm would not do: it must be excluded from training, weight decay and
    statistics, and it divides by the square root of 1 + epsilon.
    """
    names = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in names:
        network.set_submodule(name, nn.Identity())
    return len(names)


@torch.no_grad()
def _keep_variance(network: nn.Module, shape: tuple[int, ...], seed: int) -> None:
    """Scale each layer's weights so that its outputs have standard deviation 1, for noise.

    Without batch-norm, signals vanish or explode over 50 layers with torchvision's initial weights.
    This is layer-sequential unit variance (Mishkin & Matas 2015, algorithm 1): layers are scaled in
    the order of execution, each on the outputs of the scaled layers before it. One pass suffices
    because biases are set to 0, so that outputs are proportional to the weights.
    """

    def scale(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        deviation = output.std()
        layer.weight.div_(deviation)  # type: ignore[operator]
        return output / deviation

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer.bias is not None:
            layer.bias.zero_()
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    training = network.training
    network.eval()(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    network.train(training)
    for hook in hooks:
        hook.remove()


def _runs(network: nn.Module, channels: int, resolution: int) -> bool:
    """Check the geometry on the meta device, which computes shapes only."""
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


def _first_convolution(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Re-initialize ``old`` with other input channels, from the same distribution."""
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    if old.bias is None:  # torchvision's MobileNetV2 initializes by fan-out, the others by default
        nn.init.kaiming_normal_(new.weight, mode="fan_out")
    return new


def _mobilenet_v2(config: recipe.Network, channels: int, classes: int) -> nn.Module:
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(num_classes=classes)
    stem = network.features[0]
    if config.stem != "paper" or channels != 3:
        stem[0] = _first_convolution(stem[0], channels)
    _set_mobilenet_v2(network, config.stem)
    return network


def _set_mobilenet_v2(network: Any, stem: str) -> None:
    first, second = network.features[0][0], network.features[2].conv[1][0]
    first.stride = (2, 2) if stem == "paper" else (1, 1)
    second.stride = (1, 1) if stem == "cifar" else (2, 2)


def _shufflenet_v2(config: recipe.Network, channels: int, classes: int) -> nn.Module:
    from torchvision.models import shufflenet_v2_x1_0

    network = shufflenet_v2_x1_0(num_classes=classes)
    if config.stem != "paper" or channels != 3:
        network.conv1[0] = _first_convolution(network.conv1[0], channels)
    _set_shufflenet_v2(network, config.stem)
    return network


def _set_shufflenet_v2(network: Any, stem: str) -> None:
    network.conv1[0].stride = (2, 2) if stem == "paper" else (1, 1)
    network.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, 1)


def _alexnet(config: recipe.Network, channels: int, classes: int) -> nn.Module:
    from torchvision.models import alexnet

    network = alexnet(num_classes=classes)
    if channels != 3:
        network.features[0] = _first_convolution(network.features[0], channels)
    _set_alexnet(network, config.stem)
    return network


def _set_alexnet(network: Any, stem: str) -> None:
    # An 11x11 convolution of stride 4 is too coarse for a small image. AlexNet has no other strided
    # layer in its stem, so that both stems mean stride 1: 32x32 pixels give 2x2 before the
    # classifier.
    network.features[0].stride = (4, 4) if stem == "paper" else (1, 1)


@contextmanager
def with_stem(network: nn.Module, config: recipe.Network, stem: str) -> Iterator[None]:
    """Return a network with another stem: strides and pooling change, weights do not.

    Args:
        network: Result of :func:`build_network`, possibly pruned.
        config: Configuration that it was built from.
        stem: See ``recipe.Network.stem``.
    """
    _STEMS[config.name](network, stem)
    try:
        yield
    finally:
        _STEMS[config.name](network, config.stem)


_STEMS: dict[str, Callable[[nn.Module, str], None]] = {
    "mobilenet_v2": _set_mobilenet_v2,
    "shufflenet_v2_x1_0": _set_shufflenet_v2,
    "alexnet": _set_alexnet,
}

_BUILDERS: dict[str, Callable[[recipe.Network, int, int], nn.Module]] = {
    "mobilenet_v2": _mobilenet_v2,
    "shufflenet_v2_x1_0": _shufflenet_v2,
    "alexnet": _alexnet,
}
