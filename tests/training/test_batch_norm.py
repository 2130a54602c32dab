"""Statistics of batch-norm follow a short training."""

from __future__ import annotations

import torch
from torch import nn

from secateur.training.batch_norm import follow_batches


def test_statistics_of_before_are_forgotten() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1, momentum=0.01), nn.BatchNorm1d(1, momentum=0.3))
    follow_batches(network)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        network[0](5 + torch.randn(8, 1, 4, 4, generator=generator))
    assert abs(network[0].running_mean.item() - 5) < 0.2
    assert network[1].momentum == 0.3


def test_a_cumulative_average_stays_one() -> None:
    network = nn.BatchNorm2d(1, momentum=None)
    follow_batches(network)
    assert network.momentum is None
