"""Statistical power and disk space of a data set, before images are decoded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secateur.data.dataset import DataSet
from secateur.data.folder import FolderDataSet
from secateur.data.pixel_store import default_cache
from secateur.statistics import images_needed

DISAGREEMENT = 0.45
"""Ratio of the images on which exactly one of a network and its compressed form is correct to the
network's errors. It is 0.35 to 0.49 in this project's study; a test checks it."""


@dataclass(frozen=True)
class Preflight:
    """Requirements of a data set.

    Attributes:
        counts: From ``training``, ``validation`` and ``test`` to the number of images of each
            class.
        classes: Class names in the order of the labels.
        report: Lines that describe the images, and those that were skipped.
        disk_bytes: Disk space for decoded images in ``disk``, in bytes; 0 if they fit in memory.
        free_bytes: Free bytes in ``disk``.
        disk: Folder for decoded images.
        margin: Allowed loss of accuracy, a fraction.
        needed: Number of test images to show a loss within ``margin``.
    """

    counts: dict[str, list[int]]
    classes: tuple[str, ...]
    report: tuple[str, ...]
    disk_bytes: int
    free_bytes: int
    disk: Path
    margin: float
    needed: int

    @property
    def has_room(self) -> bool:
        """Whether decoded images fit on the disk."""
        return self.disk_bytes <= self.free_bytes

    @property
    def has_power(self) -> bool:
        """Whether there are enough test images for the margin."""
        return sum(self.counts["test"]) >= self.needed

    def lines(self) -> Iterator[str]:
        """Yield lines that describe the images and name what is missing."""
        yield from self.report
        for part, counts in self.counts.items():
            smallest = min(range(len(counts)), key=counts.__getitem__)
            yield (
                f"{part}: {sum(counts):,} images, {counts[smallest]:,} or more of each class "
                f"(fewest: {self.classes[smallest]!r})"
            )
        if self.disk_bytes:
            yield (
                f"decoded images need {self.disk_bytes / 1e9:.1f} GB in {self.disk}, "
                f"{self.free_bytes / 1e9:.1f} GB are free"
            )
        if not self.has_power:
            yield (
                f"{sum(self.counts['test']):,} test images cannot show "
                f"{100 * self.margin:g} points; about {float(f'{self.needed:.2g}'):,.0f} are needed"
            )


def preflight(data: DataSet, margin: float, accuracy: float) -> Preflight:
    """Compute the requirements of a data set, without opening an image.

    Args:
        data: The data set.
        margin: Allowed loss of accuracy, a fraction in (0, 1).
        accuracy: Approximate accuracy of the network before compression, in [0, 1].
    """
    mapped = data.mapped_bytes if isinstance(data, FolderDataSet) else 0
    disk = default_cache()
    existing = next(folder for folder in (disk, *disk.parents) if folder.exists())
    return Preflight(
        counts=data.counts(),
        classes=data.classes,
        report=data.report,
        disk_bytes=mapped,
        free_bytes=shutil.disk_usage(existing).free,
        disk=disk,
        margin=margin,
        needed=images_needed(margin, DISAGREEMENT * (1 - accuracy)),
    )
