"""The network to compress and the images to do it with."""

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
    """What a compression starts from.

    Attributes:
        name: Of the network.
        data_name: Of the data set.
        network: Trained, in inference mode, on ``device``; it is the reference and the teacher.
        training: Images, on ``device``.
        validation: Images, on ``device``; candidates are chosen by them.
        test: Reads the test images; called once.
        test_images: How many there are.
        prepare: From stored pixels to the network's input.
        device: Where networks are trained.
        report: Lines that say what images there are, and what was skipped.
        loop: What of training and evaluation is the user's own.
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
    report: tuple[str, ...] = ()
    loop: UserLoop = field(default_factory=UserLoop)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.training.classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one prepared image, (C, H, W)."""
        side = self.prepare.resolution
        return self.training.pixels.shape[1], side, side

    @property
    def example(self) -> torch.Tensor:
        """A batch of one blank image, on the CPU."""
        return torch.zeros(1, *self.input_shape)

    @property
    def training_images(self) -> int:
        """Images of an epoch."""
        dataset = getattr(self.loop.loader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else len(self.training)

    @property
    def _training_identity(self) -> str:
        if self.loop.loader is None:
            return self.training.fingerprint
        # A loader shuffles and augments: the images that it yields are never twice the same.
        return f"{type(self.loop.loader).__name__} of {self.training_images} images"

    @cached_property
    def identity(self) -> dict[str, object]:
        """What decides every result: the network, the images and their preparation."""
        return {
            "network": fingerprint(self.network),
            "training": self._training_identity,
            "validation": self.validation.fingerprint,
            "prepare": repr(self.prepare),
        }
