"""Validation images, by which quantization chooses among ways to round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.data import Images, Preparation
from secateur.training.evaluation import Scorer, correct, correct_and_loss

_BATCH = 16
"""Images at a time: at 224 pixels, activations of more would take gigabytes."""


class Validation(Protocol):
    """Tells how good a network is."""

    def loss(self, network: Scorer) -> float:
        """Mean cross-entropy, in nats."""

    def right(self, network: Scorer) -> npt.NDArray[np.bool_]:
        """Whether the network is right, image by image; shape (N,)."""

    def accuracy(self, network: Scorer) -> float:
        """Share of images that the network is right on, in [0, 1]."""


@dataclass(frozen=True)
class ValidationSet:
    """Stored images with labels.

    Attributes:
        images: With labels, on the CPU.
        prepare: From stored pixels to the network's input.
    """

    images: Images
    prepare: Preparation

    def loss(self, network: Scorer) -> float:
        """Mean cross-entropy, in nats."""
        return float(correct_and_loss(network, self.images, self.prepare)[1].mean())

    def right(self, network: Scorer) -> npt.NDArray[np.bool_]:
        """Whether the network is right, image by image; shape (N,)."""
        return correct(network, self.images, self.prepare)

    def accuracy(self, network: Scorer) -> float:
        """Share of images that the network is right on, in [0, 1]."""
        return float(self.right(network).mean())


@dataclass(frozen=True, eq=False)
class TargetSet:
    """Prepared images with a probability for each class: of labels, or of the float network.

    Attributes:
        images: float32 (N, C, H, W).
        targets: float32 (N, classes); rows sum to 1.
    """

    images: Tensor
    targets: Tensor

    @classmethod
    def of_labels(cls, images: Tensor, labels: Tensor, classes: int) -> TargetSet:
        """The set whose targets are labels, int64 (N,) in [0, ``classes``)."""
        return cls(images, torch.nn.functional.one_hot(labels, classes).float())

    @classmethod
    def of_network(cls, images: Tensor, network: Scorer) -> TargetSet:
        """The set whose targets are the probabilities that ``network`` gives."""
        return cls(images, logits_of(network, images).softmax(1).float())

    def loss(self, network: Scorer) -> float:
        """Mean cross-entropy against the targets, in nats."""
        answers = logits_of(network, self.images).log_softmax(1)
        return -float((self.targets * answers).sum(1).mean())

    def right(self, network: Scorer) -> npt.NDArray[np.bool_]:
        """Whether the network chooses the likeliest target, image by image; shape (N,)."""
        return (logits_of(network, self.images).argmax(1) == self.targets.argmax(1)).numpy()

    def accuracy(self, network: Scorer) -> float:
        """Share of images on which the network chooses the likeliest target, in [0, 1]."""
        return float(self.right(network).mean())


@torch.inference_mode()
def logits_of(network: Scorer, images: Tensor) -> Tensor:
    """Logits of ``network``, float64 (N, classes), batch by batch."""
    return torch.cat([network(batch) for batch in images.split(_BATCH)]).double()
