"""Two slow paths of training on a processor, and the ways around them.

How much they gain: ``benchmarks/training_speed.py``, and ``results/training_speed.jsonl`` for one
machine (two cores, AVX2, batch 128 at 28x28): 3.1 times for MobileNetV2 with its own strides,
1.6 times for ShuffleNetV2.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc reuse the memory of activations instead of returning it after every step.

    Large blocks are otherwise mapped and unmapped each time, and the kernel zeroes each page anew.
    Does nothing where the C library has no ``mallopt``.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _pad_then_convolve(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    if min(images.shape[2:]) >= max(convolution.kernel_size):
        return nn.Conv2d.forward(convolution, images)
    rows, columns = (int(side) for side in convolution.padding)
    padded = F.pad(images, (columns, columns, rows, rows))
    return F.conv2d(
        padded,
        convolution.weight,
        convolution.bias,
        convolution.stride,
        0,
        convolution.dilation,
        convolution.groups,
    )


@contextmanager
def fast_small_maps(*networks: nn.Module) -> Iterator[None]:
    """Pad depthwise convolutions by hand where the map is smaller than the kernel.

    oneDNN computes the weight gradient of those far slower than the same gradient with the padding
    made explicit. The arithmetic is the same.
    """
    slow = [
        module
        for network in networks
        for module in network.modules()
        if type(module) is nn.Conv2d
        and module.groups == module.in_channels > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and next(module.parameters()).device.type == "cpu"
    ]
    for module in slow:
        module.forward = functools.partial(_pad_then_convolve, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in slow:
            del module.forward  # the class's own method shows again
