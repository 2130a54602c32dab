"""Faster replacements for slow layers in training on CPUs.

``benchmarks/training_speed.py`` measures the gain; see ``results/training_speed.jsonl``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h

LARGEST_MAP = 16 * 16
"""Largest map, in pixels, on which a 1x1 convolution is faster as a matrix product."""


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc reuse the memory of activations instead of returning it after every step.

    Otherwise large blocks are mapped and unmapped each time, and the kernel clears each page again.
    Does nothing if the C library has no ``mallopt``.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def fast_layers(*networks: nn.Module) -> Iterator[None]:
    """Replace slow layers by faster equivalents during the block.

    * Depthwise convolutions on maps smaller than their kernel are padded explicitly, because oneDNN
      computes their weight gradient much faster then.
    * 1x1 convolutions on small maps become matrix products.
    * ShuffleNetV2's blocks interleave channels in one pass, and their output stays channels last.

    Networks on an accelerator are not changed.
    """
    changed = []
    for network in networks:
        for module in network.modules():
            forward = _fast_forward(module)
            if forward is not None:
                module.forward = functools.partial(forward, module)
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # restores the class's method


def _fast_forward(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    first = next(module.parameters(), None)
    if first is None or first.device.type != "cpu":
        return None
    if type(module) is nn.Conv2d:
        return _fast_convolution(module)
    if _is_shuffle_block(module):
        return _shuffle_block
    return None


def _fast_convolution(layer: nn.Conv2d) -> Callable[[Any, Tensor], Tensor] | None:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    if layer.groups == layer.in_channels > 1:
        return _pad_then_convolve
    pointwise = (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))
    return _multiply if pointwise and layer.groups == 1 else None


def _pad_then_convolve(layer: nn.Conv2d, images: Tensor) -> Tensor:
    if min(images.shape[2:]) >= max(layer.kernel_size):
        return nn.Conv2d.forward(layer, images)
    rows, columns = (int(side) for side in layer.padding)
    padded = F.pad(images, (columns, columns, rows, rows))
    return F.conv2d(padded, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


def _multiply(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """A 1x1 convolution as a product of pixels (channels last) and weights."""
    if images.shape[2] * images.shape[3] > LARGEST_MAP:
        return nn.Conv2d.forward(layer, images)
    pixels = images.permute(0, 2, 3, 1)
    rows = pixels.reshape(-1, layer.in_channels)  # a view, also of half the channels
    weight = layer.weight.view(layer.out_channels, layer.in_channels)
    products = F.linear(rows, weight, layer.bias)
    return products.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def _is_shuffle_block(module: nn.Module) -> bool:
    from torchvision.models.shufflenetv2 import InvertedResidual

    return type(module) is InvertedResidual


def _shuffle_block(block: Any, images: Tensor) -> Tensor:
    """The forward pass of torchvision's block, with a faster concatenation and shuffle."""
    left, right = images.chunk(2, dim=1) if block.stride == 1 else (images, images)
    left, right = left if block.stride == 1 else block.branch1(left), block.branch2(right)
    if left.shape != right.shape or left.dtype not in (torch.float32, torch.float64):
        from torchvision.models.shufflenetv2 import channel_shuffle

        return channel_shuffle(torch.cat((left, right), dim=1), 2)
    return _Interleave.apply(left, right)


class _Interleave(torch.autograd.Function):
    """Interleave channels of two tensors; both passes read memory once.

    Pairs of real numbers are stored as complex numbers, which torch packs by vector instructions.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        pairs = torch.complex(*(half.permute(0, 2, 3, 1) for half in (left, right)))
        return torch.view_as_real(pairs).flatten(3).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        pairs = gradient.permute(0, 2, 3, 1).unflatten(3, (-1, 2))
        left, right = (pairs[..., side].contiguous().permute(0, 3, 1, 2) for side in (0, 1))
        return left, right
