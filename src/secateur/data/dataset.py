"""What every data set offers: parts that never overlap, classes, and keys for content ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from torch import Tensor

from secateur.data.images import Images


class DataSet(ABC):
    """Images in three parts.

    Nothing is decoded before it is asked for, and :attr:`test` only by what measures in the end.

    Attributes:
        classes: Class names in the order of the labels.
        channels: 1 for gray, 3 for color.
        report: Lines that say what there is, and what was skipped.
    """

    classes: tuple[str, ...]
    channels: int
    report: tuple[str, ...]

    @property
    @abstractmethod
    def source(self) -> Images:
        """Training and validation images together."""

    @property
    @abstractmethod
    def split(self) -> tuple[Tensor, Tensor]:
        """Indices into :attr:`source`, sorted: training, validation."""

    @property
    @abstractmethod
    def test(self) -> Images:
        """Images that are opened once, at the end."""

    @cached_property
    def training(self) -> Images:
        """Images to train on."""
        return self.source.take(self.split[0])

    @cached_property
    def validation(self) -> Images:
        """Images to choose by."""
        return self.source.take(self.split[1])

    @abstractmethod
    def counts(self) -> dict[str, list[int]]:
        """``training``, ``validation`` and ``test`` to the images of each class; none is opened."""

    @property
    def test_images(self) -> int:
        """How many images :attr:`test` has; none is opened."""
        return sum(self.counts()["test"])

    @abstractmethod
    def key(self) -> dict[str, Any]:
        """What identifies :attr:`source` in content ids beyond the recipe; plain data."""

    @abstractmethod
    def test_key(self) -> dict[str, Any]:
        """What identifies :attr:`test` in content ids beyond the recipe; plain data."""
