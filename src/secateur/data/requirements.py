"""What a data set can show and what it needs, known before anything is decoded or trained."""

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
"""Images on which exactly one of a network and its compressed form is right, per error of the
network. In the cells of this project's study it is 0.35 to 0.49, as a test checks."""


@dataclass(frozen=True)
class Preflight:
    """What a data set comes to.

    Attributes:
        counts: ``training``, ``validation`` and ``test`` to the images of each class.
        classes: Class names in the order of the labels.
        report: Lines that say what was found in a folder, and what was skipped.
        disk_bytes: Bytes that decoded images need on disk, in ``disk``; 0 where they fit in memory.
        free_bytes: Bytes that are free there.
        disk: The folder.
        margin: Loss of accuracy that is allowed, a fraction.
        needed: Test images needed to show a loss within ``margin``.
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
        """Decoded images fit on the disk."""
        return self.disk_bytes <= self.free_bytes

    @property
    def has_power(self) -> bool:
        """There are enough test images for the margin."""
        return sum(self.counts["test"]) >= self.needed

    def lines(self) -> Iterator[str]:
        """Yield lines for a person: what there is, what is scarce."""
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
    """Say what a data set comes to, without opening an image.

    Args:
        data: The data set.
        margin: Loss of accuracy that is allowed, a fraction in (0, 1).
        accuracy: Of the network before compression, in [0, 1]; a guess is enough.
    """
    mapped = data.mapped_bytes if isinstance(data, FolderDataSet) else 0
    disk = default_cache()
    there = next(folder for folder in (disk, *disk.parents) if folder.exists())
    return Preflight(
        counts=data.counts(),
        classes=data.classes,
        report=data.report,
        disk_bytes=mapped,
        free_bytes=shutil.disk_usage(there).free,
        disk=disk,
        margin=margin,
        needed=images_needed(margin, DISAGREEMENT * (1 - accuracy)),
    )
