"""How much a filter or a weight matters: the smallest go first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.pruning.channels import Group


def filter_importance(model: nn.Module, group: Group) -> Tensor:
    """L2 norm of all weights that make each channel (Li et al. 2017, section 3.1, with L2 for L1).

    A channel's filter in the producer and those in the group's depthwise convolutions count
    together, as one vector.

    Returns:
        Shape (channels,), on the model's device.
    """
    makers = [model.get_submodule(name) for name in (group.producer, *group.depthwise)]
    weights = [maker.get_parameter("weight").detach().flatten(1) for maker in makers]
    return torch.linalg.vector_norm(torch.cat(weights, dim=1), dim=1)


def weight_importance(weight: Tensor) -> Tensor:
    """Magnitude of each weight (Han et al. 2015, section 3), in the shape of ``weight``."""
    return weight.detach().abs()
