"""Networks that lose half their width, and a check that they compute what their masks do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur.pruning.plan import Plan

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def leaves(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for each in (value.values() if isinstance(value, dict) else value)
            for leaf in leaves(each)]  # fmt: skip


def halve(
    network: nn.Module,
    most: float,
    *inputs: Tensor,
    fraction: float = 0.5,
    tolerance: float = 1e-9,
    **options,
):
    """Remove half at random; exact in float64, after a round trip through JSON."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.3, 1)
    network, inputs = network.double().eval(), tuple(x.double() for x in inputs or (IMAGES,))
    options = {"importance": "random", "round_to": 1, **options}
    example = inputs if len(inputs) > 1 else inputs[0]
    plan = secateur.plan_removal(network, example, fraction, **options)
    plan = Plan.from_json(plan.to_json())
    masked, small = secateur.apply_masks(network, plan), secateur.remove(network, plan)
    with torch.no_grad():
        for actual, expected in zip(leaves(small(*inputs)), leaves(masked(*inputs)), strict=True):
            assert actual.shape == expected.shape
            assert float((actual - expected).norm() / expected.norm()) < tolerance
            assert float(expected.std(0).max()) > 0
    left = parameters(small) / parameters(network)
    assert left < most, f"{left:.2f} of the parameters stay"
    return small


class Between(nn.Module):
    """A convolution to 16 channels, something, and a convolution that reads them."""

    def __init__(self, call, **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head, self.call = nn.Linear(16, 5), call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.call(self, F.relu(self.first(x)))
        return self.head(F.relu(self.second(x)).mean((2, 3)))
