"""The network to compress and its images."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from secateur.compression.loaders import UserLoop
from secateur.data import Images, Preparation
from secateur.models.networks import fingerprint


@dataclass(frozen=True, eq=False)
class Problem:
    """The network and images of a compression.

    Attributes:
        name: Name of the network.
        data_name: Name of the data set.
        network: The trained network, in inference mode, on ``device``; reference and teacher.
        training: Training images, on ``device``.
        validation: Validation images, on ``device``; candidates are compared on them.
        test: Function that reads the test images; called once.
        test_images: Number of test images.
        prepare: Maps stored pixels to the network's input.
        device: Device for training.
        accuracy: Accuracy of the network on a sample of validation images, in [0, 1].
        report: Lines that describe the images, and those that were skipped.
        loop: The user's own training step and evaluation.
    """

    name: str
    data_name: str
    network: nn.Module
    training: Images
    validation: Images
    test: Callable[[], Images]
    test_images: int
    prepare: Preparation
    device: torch.device
    accuracy: float
    report: tuple[str, ...] = ()
    loop: UserLoop = field(default_factory=UserLoop)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.training.classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one prepared image, (C, H, W)."""
        side = self.prepare.resolution
        return self.training.pixels.shape[1], side, side

    @property
    def example(self) -> torch.Tensor:
        """A batch of one blank image, on the CPU."""
        return torch.zeros(1, *self.input_shape)

    @property
    def training_images(self) -> int:
        """Number of images of an epoch."""
        dataset = getattr(self.loop.loader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else len(self.training)

    @property
    def _training_identity(self) -> str:
        if self.loop.loader is None:
            return self.training.fingerprint
        # A loader shuffles and augments, so that its images differ in each epoch.
        return f"{type(self.loop.loader).__name__} of {self.training_images} images"

    @cached_property
    def identity(self) -> dict[str, object]:
        """Everything that determines results: the network, the images and their preparation."""
        return {
            "network": fingerprint(self.network),
            "training": self._training_identity,
            "validation": self.validation.fingerprint,
            "prepare": repr(self.prepare),
        }
