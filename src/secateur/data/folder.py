"""A data set from a folder of images.

    folder = load_folder(Path("images"), prepare, validation=0.2, seed=0)
    folder.training, folder.validation     # Images: pixels, labels, classes, take, spread
    folder.test                            # Images, decoded when it is first asked for
    folder.classes, folder.report          # names; lines that say what there is, what was skipped

The parts follow from the folders (see :mod:`secateur.data.listing` for the two layouts):

| folders | training | validation | test |
|---|---|---|---|
| train, val, test | train | val | test |
| train, test | train without the drawn part | drawn by seed | test |
| train, val | train without the drawn part | drawn by seed | val |
| classes only | the rest | second draw by seed | first draw by seed |

The validation part, on which all choices are made, is thus never the test part.

Pixels are the squares of side ``prepare.side`` that ``prepare.fit`` makes; ``prepare(pixels)``
turns them into the input. Data sets of more than ``memory`` bytes are decoded once into a
memory-mapped file (:mod:`secateur.data.pixel_store`); their ``Images`` have the same interface.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.data.dataset import DataSet
from secateur.data.images import Images
from secateur.data.listing import list_folder
from secateur.data.pixel_store import MEMORY_LIMIT, ImageFiles, load_pixels
from secateur.data.splits import split
from secateur.imaging import PIXEL_LIMIT, Preparation


class FolderDataSet(DataSet):
    """A folder of images; made by :func:`load_folder`.

    Attributes:
        listing: The files of each part, and skipped files.
    """

    def __init__(
        self,
        root: Path,
        preparation: Preparation,
        *,
        validation: float,
        test: float,
        seed: int,
        max_pixels: int,
        memory: int,
        cache: Path | None,
    ) -> None:
        self.listing = list_folder(root)
        self.classes, self.report = self.listing.classes, tuple(self.listing.report())
        self.channels = preparation.channels
        self._preparation, self._max_pixels = preparation, max_pixels
        self._memory, self._cache = memory, cache
        parts = self.listing.files
        train, last = parts["train"], parts.get("test") or parts.get("val")
        if last is None:
            kept, drawn = split(_labels(train), test, seed, self.classes)
            train, last = _at(train, kept), _at(train, drawn)
        if "val" in parts and "test" in parts:
            self._files = train + parts["val"]
            self._split = torch.arange(len(train)), torch.arange(len(train), len(self._files))
        else:
            self._files = train
            self._split = split(_labels(train), validation, seed, self.classes)
        self._test_files = last

    @property
    def source(self) -> Images:
        """Training and validation images together."""
        return self._source[0]

    @property
    def split(self) -> tuple[Tensor, Tensor]:
        """Indices into :attr:`source`, sorted: training, validation."""
        return self._split

    @property
    def test(self) -> Images:
        """Test images, for the final evaluation."""
        return self._test[0]

    def counts(self) -> dict[str, list[int]]:
        """From ``training``, ``validation`` and ``test`` to the number of images of each class."""
        training, validation = (_at(self._files, indices) for indices in self._split)
        parts = {"training": training, "validation": validation, "test": self._test_files}
        labels = {part: Counter(label for _, label in files) for part, files in parts.items()}
        return {
            part: [n[label] for label in range(len(self.classes))] for part, n in labels.items()
        }

    def key(self) -> dict[str, Any]:
        """Class names, and the fingerprint of :attr:`source`."""
        return {"classes": list(self.classes), "fingerprint": self._source[1]}

    def test_key(self) -> dict[str, Any]:
        """The fingerprint of :attr:`test`."""
        return {"test_fingerprint": self._test[1]}

    def sample(self, count: int) -> Images:
        """Decode at most ``count`` evenly spaced validation images and no others."""
        files = self._listed(_at(self._files, self._split[1])).spread(count)
        pixels, _ = load_pixels(files, self._memory, self._cache)
        return Images(pixels, files.labels, self.classes)

    @cached_property
    def _source(self) -> tuple[Images, str]:
        return self._load(self._files)

    @cached_property
    def _test(self) -> tuple[Images, str]:
        return self._load(self._test_files)

    def _load(self, files: list[tuple[Path, int]]) -> tuple[Images, str]:
        listed = self._listed(files)
        pixels, fingerprint = load_pixels(listed, self._memory, self._cache)
        return Images(pixels, listed.labels, self.classes), fingerprint

    def _listed(self, files: list[tuple[Path, int]]) -> ImageFiles:
        return ImageFiles(self.listing.root, files, self._preparation, self._max_pixels)


def load_folder(
    root: Path,
    preparation: Preparation,
    *,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    max_pixels: int = PIXEL_LIMIT,
    memory: int = MEMORY_LIMIT,
    cache: Path | None = None,
) -> FolderDataSet:
    """List a folder of images and split it; images are decoded on first access.

    Args:
        root: ``train/``, ``val/``, ``test/`` with a folder for each class, or one level of classes.
        preparation: How images become squares; mean and standard deviation are not used.
        validation: Fraction of each class drawn for validation if there is no such folder, in (0,
            1).
        test: Fraction of each class drawn for test if there is no such folder, in (0, 1).
        seed: Seed of the draws.
        max_pixels: Largest width times height of a file.
        memory: Largest size of decoded images in memory, in bytes.
        cache: Folder for larger sets of decoded images; None for the user's cache.

    Raises:
        DataError: The folder, a class or (when decoded) an image is invalid; the message names it.
    """
    return FolderDataSet(
        root, preparation, validation=validation, test=test, seed=seed, max_pixels=max_pixels,
        memory=memory, cache=cache,
    )  # fmt: skip


def _labels(files: list[tuple[Path, int]]) -> Tensor:
    return torch.tensor([label for _, label in files])


def _at(files: list[tuple[Path, int]], indices: Tensor) -> list[tuple[Path, int]]:
    return [files[index] for index in indices.tolist()]
