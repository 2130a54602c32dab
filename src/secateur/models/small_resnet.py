"""The network that ships with the package: a small residual network for gray 28x28 images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 128)


class Block(nn.Module):
    """Two 3x3 convolutions with batch-norm around a shortcut (He et al. 2016, Figure 2, left)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        return F.relu(residual + self.shortcut(images))


class SmallResNet(nn.Module):
    """ResNet-8: a first convolution of stride 2, a block in each of three stages, a linear layer.

    Args:
        num_classes: Number of outputs.
        in_channels: Input channels; inputs are float32 (N, in_channels, H, W).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.conv1 = nn.Conv2d(in_channels, first, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.stage1 = Block(first, first, 1)
        self.stage2 = Block(first, second, 2)
        self.stage3 = Block(second, third, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.stage3(self.stage2(self.stage1(features)))
        return self.fc(self.pool(features).flatten(1))


def small_resnet(num_classes: int = 10, in_channels: int = 1) -> SmallResNet:
    """Build an untrained :class:`SmallResNet`."""
    return SmallResNet(num_classes, in_channels)
