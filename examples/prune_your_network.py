"""Prune a network inside your own training loop.

Trains a small network on images that are drawn here, removes half of its multiply-accumulates, and
continues training with the same optimizer state. Run: python examples/prune_your_network.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur


class Net(nn.Module):
    """Two convolutions with a residual connection, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.classes = nn.Linear(32, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, float32 (N, 1, 16, 16), to scores, float32 (N, 2)."""
        features = F.relu(self.first(images))
        features = features + F.relu(self.second(features))
        return self.classes(features.mean((2, 3)))


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images with vertical (class 0) or horizontal (class 1) stripes, and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    stripes = (torch.arange(16) // 2 % 2).float().expand(16, 16)
    images = torch.stack([stripes if label == 0 else stripes.T for label in labels])[:, None]
    return images + torch.randn(images.shape, generator=generator), labels


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Your own loop; nothing in it knows of pruning."""
    network.train()
    for step in range(steps):
        images, labels = draw(32, step)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()


def accuracy(network: nn.Module) -> float:
    """Fraction of 400 new images that are classified correctly."""
    images, labels = draw(400, 1_000_000)
    with torch.inference_mode():
        return float((network.eval()(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Train, prune, continue training, and compare."""
    torch.manual_seed(0)
    network, example = Net(), torch.zeros(1, 1, 16, 16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    train(network, optimizer, 100)
    print(f"trained: {100 * accuracy(network):.1f} %")

    print(*secateur.find_prunable(network, example).groups, sep="\n")  # what belongs together
    plan = secateur.plan_removal(network, example, objective="macs", target=0.5)
    smaller = secateur.remove(network, plan)
    optimizer = secateur.shrink_optimizer(optimizer, network, smaller, plan)
    print(f"pruned to {smaller.first.out_channels} channels: {100 * accuracy(smaller):.1f} %")

    train(smaller, optimizer, 50)
    print(f"trained further: {100 * accuracy(smaller):.1f} %")
    assert smaller.first.out_channels < 32
    assert accuracy(smaller) > 0.9


if __name__ == "__main__":
    main()
