"""The network to compress and its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
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
        sample: Some validation images, on ``device``; enough for the checks before the search.
        counts: From ``training`` and ``validation`` to the number of images of each class.
        read: Function that reads the images of training and validation, which may take long;
            called once, when one of them is first used.
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
    sample: Images
    counts: Mapping[str, Sequence[int]]
    read: Callable[[], tuple[Images, Images]]
    test: Callable[[], Images]
    test_images: int
    prepare: Preparation
    device: torch.device
    accuracy: float
    report: tuple[str, ...] = ()
    loop: UserLoop = field(default_factory=UserLoop)

    @cached_property
    def _images(self) -> tuple[Images, Images]:
        training, validation = self.read()
        return training.to(self.device), validation.to(self.device)

    def load(self) -> None:
        """Read the images of training and validation, unless that is done."""
        _ = self._images

    @property
    def training(self) -> Images:
        """Training images, on ``device``."""
        return self._images[0]

    @property
    def validation(self) -> Images:
        """Validation images, on ``device``; candidates are compared on them."""
        return self._images[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.sample.classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one prepared image, (C, H, W)."""
        side = self.prepare.resolution
        return self.sample.pixels.shape[1], side, side

    @property
    def example(self) -> torch.Tensor:
        """A batch of one blank image, on the CPU."""
        return torch.zeros(1, *self.input_shape)

    @property
    def training_images(self) -> int:
        """Number of images of an epoch."""
        dataset = getattr(self.loop.loader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else sum(self.counts["training"])

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
