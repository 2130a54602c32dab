from __future__ import annotations

import torch
from torch import nn

from secateur.pruning.channels import Consumer, Group
from secateur.pruning.importance import filter_importance, weight_importance


def test_a_filter_and_its_depthwise_filter_count_as_one_vector() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 2, groups=2), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, -1.0]).view(2, 1, 1, 1))
        network[1].weight.copy_(torch.tensor([2.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2))
        network[0].bias.fill_(100)  # does not count
    group = Group("0", 2, (), ("1",), (Consumer("2"),))
    # 3^2 + 4 * 2^2 = 25, and 1.
    assert filter_importance(network, group).tolist() == [5.0, 1.0]


def test_a_weight_counts_by_magnitude() -> None:
    weight = nn.Parameter(torch.tensor([[-2.0, 0.5]]))
    assert weight_importance(weight).tolist() == [[2.0, 0.5]]
    assert not weight_importance(weight).requires_grad
