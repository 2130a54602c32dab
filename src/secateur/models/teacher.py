"""The teacher for distillation: few wide convolutions after a fixed whitening layer.

The architecture is that of airbench (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single
GPU", arXiv 2404.00498, sections 3.1 and 3.2): a 2x2 convolution that whitens patches and is not
trained, three blocks of two 3x3 convolutions with a max-pool, convolutions that start as the
identity, and scaled outputs. The whitening layer is Page's (2019, "How to Train Your ResNet 8: Bag
of Tricks").
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import recipe

PATCH = 2
_OUTPUT_SCALE = 1 / 9
_LEAST_VARIANCE = 5e-4  # added to each eigenvalue to avoid division by 0


def build_teacher(config: recipe.Teacher, images: Tensor, classes: int) -> nn.Module:
    """Build an untrained teacher.

    Args:
        config: Widths and seed.
        images: Prepared training images, float32 (N, C, H, W), with sides of at least 16 pixels;
            their patches determine the whitening layer.
        classes: Number of outputs.

    Returns:
        A network that maps (N, C, H, W) to scores (N, classes).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        filters = whitening(images)
        first = nn.Conv2d(images.shape[1], len(filters), PATCH, bias=False)
        first.weight = nn.Parameter(filters, requires_grad=False)
        widths = (len(filters), *config.widths)
        blocks = [_block(*pair) for pair in pairwise(widths)]
        last = nn.Linear(widths[-1], classes, bias=False)
        return nn.Sequential(
            first, nn.GELU(), *blocks, nn.AdaptiveMaxPool2d(1), nn.Flatten(), last, _Scale()
        )


def whitening(images: Tensor) -> Tensor:
    """Filters that turn 2x2 patches into uncorrelated values of variance 1, and their negatives.

    Args:
        images: float32 (N, C, H, W).

    Returns:
        float32 (8 C, C, 2, 2): eigenvectors of the patches' covariance, each divided by the square
        root of its eigenvalue.
    """
    channels = images.shape[1]
    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, channels * PATCH**2)
    values, vectors = torch.linalg.eigh(torch.cov(patches.double().T))
    filters = (vectors / (values + _LEAST_VARIANCE).sqrt()).T.flip(0)
    filters = filters.reshape(-1, channels, PATCH, PATCH).float()
    return torch.cat([filters, -filters])


class _Scale(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores * _OUTPUT_SCALE


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        *(_convolution(inputs, outputs), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.GELU()),
        *(_convolution(outputs, outputs), nn.BatchNorm2d(outputs), nn.GELU()),
    )


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters are initialized as the identity."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight[:inputs])
    return layer
