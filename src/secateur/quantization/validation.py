"""Validation images, by which quantization chooses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.data import Images, Preparation
from secateur.quantization.simulate import Simulated
from secateur.training.evaluation import correct, correct_and_loss


@dataclass(frozen=True)
class Judge:
    """Validation images, to choose by.

    Attributes:
        images: With labels, on the CPU.
        prepare: From stored pixels to the network's input.
    """

    images: Images
    prepare: Preparation

    def loss(self, network: Simulated) -> float:
        """Mean cross-entropy, in nats."""
        return float(correct_and_loss(network, self.images, self.prepare)[1].mean())

    def right(self, network: Simulated) -> npt.NDArray[np.bool_]:
        """Whether the network is right, image by image."""
        return correct(network, self.images, self.prepare)

    def accuracy(self, network: Simulated) -> float:
        """Share of images that the network is right on."""
        return float(self.right(network).mean())
