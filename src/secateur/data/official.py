"""Published data sets and the excerpt in this package, from their official files.

Every file is checked against its published checksum before it is used. Results thus depend on the
name of the data set only, and content ids need not include the files.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import zlib
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.data.dataset import DataSet
from secateur.data.images import Images
from secateur.data.splits import split
from secateur.datasets import FACTS
from secateur.errors import DataError

BUILT_IN = "fashionmnist-mini"
"""Name of the data set in the package."""


class OfficialDataSet(DataSet):
    """A published data set with a validation part drawn from its training images.

    Args:
        name: A key of :data:`secateur.datasets.FACTS`.
        root: See :func:`load`.
        validation: Fraction of each class drawn for validation, in (0, 1).
        seed: Seed of the draw.

    Raises:
        DataError: An existing file is not the official one.
    """

    def __init__(self, name: str, root: Path | None, *, validation: float, seed: int) -> None:
        facts = FACTS[name]
        self.classes, self.channels = facts.classes, facts.channels
        self._name, self._root, self._validation, self._seed = name, root, validation, seed
        check_files(name, root)
        self.report = (f"{facts.title}: {facts.training:,} training images, {facts.test:,} test",)

    @cached_property
    def source(self) -> Images:
        """The official training images."""
        return load(self._name, self._root, train=True)

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:
        """Indices into :attr:`source`, sorted: training, validation."""
        return split(self.source.labels, self._validation, self._seed, self.classes)

    @cached_property
    def test(self) -> Images:
        """The official test images."""
        return load(self._name, self._root, train=False)

    def counts(self) -> dict[str, list[int]]:
        """Number of images of each class."""
        facts, classes = FACTS[self._name], len(self.classes)
        of_class = facts.training // classes
        drawn = min(max(1, round(self._validation * of_class)), of_class - 1)
        sizes = {"training": of_class - drawn, "validation": drawn, "test": facts.test // classes}
        return {part: [size] * classes for part, size in sizes.items()}

    def key(self) -> dict[str, Any]:
        """None: the name identifies the files."""
        return {}

    def test_key(self) -> dict[str, Any]:
        """None: the name identifies the files."""
        return {}


def load(name: str, root: Path | None, *, train: bool) -> Images:
    """Load the training or the test images of a published data set into memory.

    Args:
        name: A key of :data:`secateur.datasets.FACTS`.
        root: Folder with the files, which is only read; None to use ``SECATEUR_DATA``, else to
            download into the user's cache with torchvision.
        train: True for training images, False for test images.

    Raises:
        DataError: Files are missing, or not the official ones; the message names the file.
    """
    if name not in FACTS:
        raise DataError("unknown data set", found=repr(name), expected=", ".join(FACTS))
    facts, stem = FACTS[name], "train" if train else "t10k"
    folder = _folder(name, root) or _download(name)
    if name == "cifar10":
        return _read_cifar10(folder, train)
    shape = facts.images(train=train), 1, facts.side, facts.side
    pixels, labels = (
        next(file for file in facts.md5 if f"/{stem}-{kind}" in file)
        for kind in ("images", "labels")
    )
    # The headers, 16 and 8 bytes of the IDX format, are covered by the checksum.
    values = torch.from_numpy(
        np.frombuffer(_content(folder, name, pixels), np.uint8, -1, 16).copy()
    )
    numbers = np.frombuffer(_content(folder, name, labels), np.uint8, -1, 8).astype(np.int64)
    return Images(values.view(shape), torch.from_numpy(numbers), facts.classes)


def check_files(name: str, root: Path | None) -> None:
    """Check existing files of a data set against their checksums, without a download.

    Args:
        name: A key of :data:`secateur.datasets.FACTS`.
        root: See :func:`load`.

    Raises:
        DataError: A file is not the official one.
    """
    folder = _folder(name, root)
    for file in FACTS[name].md5 if folder else ():
        assert folder is not None
        if path := _path(folder, file):
            status = path.stat()
            _check(path, name, file, status.st_size, status.st_mtime_ns)


def _folder(name: str, root: Path | None) -> Path | None:
    """Folder of the files; None if they must be downloaded."""
    if name == BUILT_IN:
        return Path(str(resources.files("secateur.data")))
    if root is None and os.environ.get("SECATEUR_DATA"):
        root = Path(os.environ["SECATEUR_DATA"])
    if root is None:
        return _cache() if any(_path(_cache(), file) for file in FACTS[name].md5) else None
    if not root.is_dir():
        raise DataError("no such data folder", where=root, remedy="check --data or SECATEUR_DATA")
    return root


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def _download(name: str) -> Path:
    from torchvision import datasets  # slow to import, and seldom needed

    known = {"cifar10": datasets.CIFAR10, "fashionmnist": datasets.FashionMNIST}
    try:
        for train in (True, False):
            known[name](str(_cache()), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cannot download {name}",
            where=_cache(),
            found=error,
            remedy="point --data or SECATEUR_DATA at a copy",
        ) from error
    return _cache()


def _path(folder: Path, file: str) -> Path | None:
    """Path of the file, gzipped or not; None if it is missing."""
    packed = folder / f"{file}.gz"
    return next((path for path in (packed, folder / file) if path.exists()), None)


@cache
def _check(path: Path, name: str, file: str, size: int, changed: int) -> None:
    """Check a file once for each state; size and modification time are keys of the cache only."""
    _content_of(path, name, file)


def _content(folder: Path, name: str, file: str) -> bytes:
    path = _path(folder, file)
    if path is None:
        raise DataError(
            "missing data file",
            where=folder / file,
            remedy="check --data or SECATEUR_DATA; without them the data is downloaded",
        )
    return _content_of(path, name, file)


def _content_of(path: Path, name: str, file: str) -> bytes:
    """Return the unpacked bytes of a file after checking them."""
    most = 2**26  # official files are smaller: up to 31 MB (CIFAR-10) and 47 MB (FashionMNIST)
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            content = opened.read(most + 1)  # limits decompression bombs
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            "corrupt data file", where=path, found=error, remedy="fetch it again"
        ) from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != FACTS[name].md5[file]:
        raise DataError(
            f"not the official file of {FACTS[name].title}",
            where=path,
            expected=f"MD5 {FACTS[name].md5[file]} of the unpacked content",
            found=digest,
            remedy="fetch it again; for data of your own use data.name = folder",
        )
    return content


def _read_cifar10(folder: Path, train: bool) -> Images:
    files = [file for file in FACTS["cifar10"].md5 if ("test" in file) != train]
    batches = [
        # The checksum is right: these are the published pickles.
        pickle.loads(_content(folder, "cifar10", file), encoding="bytes")  # noqa: S301
        for file in files
    ]
    pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = [label for batch in batches for label in batch[b"labels"]]
    return Images(torch.from_numpy(pixels), torch.tensor(labels), FACTS["cifar10"].classes)
