"""Batch normalization over the parts of a batch that several processes hold.

torch's own ``SyncBatchNorm`` runs on GPUs alone; this one needs only a sum over processes, so that
two processes on a CPU give what one gives with the whole batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.training.ranks import rank, world


@contextmanager
def synchronized(*networks: nn.Module) -> Iterator[None]:
    """Let batch normalization in training mode use the statistics of all processes' images."""
    changed = []
    for network in networks if world() > 1 else ():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.forward = functools.partial(_normalize, module)  # type: ignore[method-assign]
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own method shows again


def _normalize(layer: _BatchNorm, images: Tensor) -> Tensor:
    if not layer.training:
        return type(layer).forward(layer, images)
    dimensions = [0, *range(2, images.ndim)]
    own = images if images.dtype == torch.float64 else images.float()
    count = images.numel() // images.shape[1]
    variance, mean = torch.var_mean(own, dimensions, correction=0)
    mean, variance, total = _together(mean, variance, count)
    _follow(layer, mean.detach(), variance.detach() * total / (total - 1).clamp_min(1))
    scale = torch.rsqrt(variance + layer.eps)
    shape = (1, -1, *(1,) * (images.ndim - 2))
    normed = (own - mean.view(shape)) * scale.view(shape)
    if layer.weight is not None:
        normed = normed * layer.weight.view(shape) + layer.bias.view(shape)
    return normed.to(images.dtype)


def _together(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance over all processes' images, and how many values there are.

    As the variance of a union of samples (Chan et al. 1979, equation 2.1); its gradient goes back
    to every process.
    """
    own = torch.stack([mean, variance, torch.full_like(mean, float(count))])
    rows = [own if index == rank() else torch.zeros_like(own) for index in range(world())]
    means, variances, counts = all_reduce(torch.stack(rows)).unbind(1)
    total = counts.detach().sum(0)
    shares = counts / total
    joint = (shares * means).sum(0)
    spread = (shares * (variances + (means - joint) ** 2)).sum(0)
    return joint, spread, total


@torch.no_grad()
def _follow(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics, as torch does."""
    if not layer.track_running_stats or layer.running_mean is None:
        return
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum
    if momentum is None:
        momentum = 1 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean, momentum)
    layer.running_var.lerp_(variance, momentum)
