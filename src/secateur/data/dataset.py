"""The interface of a data set: disjoint parts, classes, and keys for content ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from torch import Tensor

from secateur.data.images import Images


class DataSet(ABC):
    """Images in three parts.

    Images are decoded on first access. Only the final evaluation reads :attr:`test`.

    Attributes:
        classes: Class names in the order of the labels.
        channels: 1 for gray, 3 for color.
        report: Lines that describe the images, and those that were skipped.
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
        """Test images, for the final evaluation."""

    @cached_property
    def training(self) -> Images:
        """Training images."""
        return self.source.take(self.split[0])

    @cached_property
    def validation(self) -> Images:
        """Validation images, for all choices."""
        return self.source.take(self.split[1])

    @abstractmethod
    def counts(self) -> dict[str, list[int]]:
        """From ``training``, ``validation`` and ``test`` to the number of images of each class."""

    @property
    def test_images(self) -> int:
        """Number of images of :attr:`test`; no image is opened."""
        return sum(self.counts()["test"])

    @abstractmethod
    def key(self) -> dict[str, Any]:
        """Identifies :attr:`source` in content ids, in addition to the recipe; plain data."""

    @abstractmethod
    def test_key(self) -> dict[str, Any]:
        """Identifies :attr:`test` in content ids, in addition to the recipe; plain data."""
