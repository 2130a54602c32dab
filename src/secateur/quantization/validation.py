"""Validation sets for choices of quantization."""

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
"""Batch size: at 224 pixels, activations of larger batches take gigabytes."""


class Validation(Protocol):
    """Measures the quality of a network."""

    def loss(self, network: Scorer) -> float:
        """Mean cross-entropy, in nats."""

    def right(self, network: Scorer) -> npt.NDArray[np.bool_]:
        """Whether each image is classified correctly; shape (N,)."""

    def accuracy(self, network: Scorer) -> float:
        """Fraction of correct images, in [0, 1]."""


@dataclass(frozen=True)
class ValidationSet:
    """Stored images with labels.

    Attributes:
        images: Labeled images, on the CPU.
        prepare: Maps stored pixels to the network's input.
    """

    images: Images
    prepare: Preparation

    def loss(self, network: Scorer) -> float:
        """Mean cross-entropy, in nats."""
        return float(correct_and_loss(network, self.images, self.prepare)[1].mean())

    def right(self, network: Scorer) -> npt.NDArray[np.bool_]:
        """Whether each image is classified correctly; shape (N,)."""
        return correct(network, self.images, self.prepare)

    def accuracy(self, network: Scorer) -> float:
        """Fraction of correct images, in [0, 1]."""
        return float(self.right(network).mean())


@dataclass(frozen=True, eq=False)
class TargetSet:
    """Prepared images with target probabilities, from labels or from the float network.

    Attributes:
        images: float32 (N, C, H, W).
        targets: float32 (N, classes); rows sum to 1.
    """

    images: Tensor
    targets: Tensor

    @classmethod
    def of_labels(cls, images: Tensor, labels: Tensor, classes: int) -> TargetSet:
        """Make a set with labels as targets, int64 (N,) in [0, ``classes``)."""
        return cls(images, torch.nn.functional.one_hot(labels, classes).float())

    @classmethod
    def of_network(cls, images: Tensor, network: Scorer) -> TargetSet:
        """Make a set with the probabilities of ``network`` as targets."""
        return cls(images, logits_of(network, images).softmax(1).float())

    def loss(self, network: Scorer) -> float:
        """Mean cross-entropy against the targets, in nats."""
        answers = logits_of(network, self.images).log_softmax(1)
        return -float((self.targets * answers).sum(1).mean())

    def right(self, network: Scorer) -> npt.NDArray[np.bool_]:
        """Whether the network chooses the most likely target of each image; shape (N,)."""
        return (logits_of(network, self.images).argmax(1) == self.targets.argmax(1)).numpy()

    def accuracy(self, network: Scorer) -> float:
        """Fraction of images with the most likely target chosen, in [0, 1]."""
        return float(self.right(network).mean())


@torch.inference_mode()
def logits_of(network: Scorer, images: Tensor) -> Tensor:
    """Logits of ``network``, float64 (N, classes), computed in batches."""
    return torch.cat([network(batch) for batch in images.split(_BATCH)]).double()
