"""Decode many image files once: into memory, or into a file that is mapped where they are many.

The file holds the 8-bit squares of :meth:`secateur.imaging.Preparation.fit` in the order of the
list, nothing else. Its name is a hash of the files' paths, sizes and times of change, of the labels
and of the preparation, so that the next run finds it and a changed file is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.console import progress
from secateur.data.images import MappedPixels, Pixels, fingerprint_of
from secateur.disk import replacing, write_json
from secateur.errors import DataError
from secateur.imaging import PIXEL_LIMIT, Preparation, decode

MEMORY_LIMIT = 2**30
"""Bytes of decoded images that are kept in memory; more are mapped from a file."""

_VERSION = 1  # of the file's content: change it when the same images become other bytes
_CHUNK = 256  # images that are decoded between two writes


@dataclass(frozen=True)
class ImageFiles:
    """Files to decode, in order.

    Attributes:
        root: What paths are relative to.
        files: Each file with its label.
        preparation: How they become squares; mean and standard deviation do not matter.
        max_pixels: Largest width times height of a file.
    """

    root: Path
    files: Sequence[tuple[Path, int]]
    preparation: Preparation
    max_pixels: int = PIXEL_LIMIT

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of all decoded images: (N, C, S, S)."""
        side = self.preparation.side
        return len(self.files), self.preparation.channels, side, side

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded images."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def labels(self) -> Tensor:
        """int64, shape (N,)."""
        return torch.tensor([label for _, label in self.files], dtype=torch.int64)

    @property
    def key(self) -> str:
        """Name of the file that holds them: 32 hexadecimal digits."""
        geometry = self.preparation.to_dict()
        del geometry["mean"], geometry["std"], geometry["order"]
        head = [_VERSION, geometry, self.preparation.channels, os.path.abspath(self.root)]
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for path, label in self.files:
            status = path.stat()
            name = os.fsencode(path.relative_to(self.root))
            digest.update(b"%b\0%d %d %d\n" % (name, label, status.st_size, status.st_mtime_ns))
        return digest.hexdigest()[:32]

    def decoded(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the images in order, some at a time, each uint8 (n, C, S, S).

        Raises:
            DataError: A file cannot be read; it is the first such in the order.
        """
        paths = [path for path, _ in self.files]
        # Pillow decodes and resizes without the interpreter's lock, so threads are enough.
        with (
            warnings.catch_warnings(),
            ThreadPoolExecutor(os.cpu_count() or 1) as pool,
            progress("decode", len(paths)) as tick,
        ):
            warnings.simplefilter("ignore")  # damaged metadata
            for start in range(0, len(paths), _CHUNK):
                some = list(pool.map(self._decode, paths[start : start + _CHUNK]))
                tick.advance(len(some))
                yield np.stack(some)

    def _decode(self, path: Path) -> npt.NDArray[np.uint8]:
        image = decode(path, self.preparation.channels, limit=self.max_pixels)
        return self.preparation.fit(image)


def default_cache() -> Path:
    """The user's cache folder for decoded images."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "secateur" / "images"


def load_pixels(
    files: ImageFiles, memory: int = MEMORY_LIMIT, cache: Path | None = None
) -> tuple[Pixels, str]:
    """Decode ``files``, or find them decoded.

    Args:
        files: What to decode.
        memory: Bytes up to which they are kept in memory and no file is written.
        cache: Folder for files; None for :func:`default_cache`.

    Returns:
        The pixels, uint8 (N, C, S, S), and the fingerprint that
        :class:`secateur.data.Images` of them has.

    Raises:
        DataError: A file cannot be read, or the cache cannot be written.
    """
    if files.nbytes <= memory:
        chunks = list(files.decoded()) or [np.empty(files.shape, np.uint8)]
        pixels = torch.from_numpy(np.concatenate(chunks))
        return pixels, fingerprint_of(pixels, files.labels)
    folder = cache or default_cache()
    stored, about = (folder / f"{files.key}{suffix}" for suffix in (".u8", ".json"))
    try:
        if not (about.is_file() and stored.is_file() and stored.stat().st_size == files.nbytes):
            folder.mkdir(parents=True, exist_ok=True)
            _check_space(files, folder)
            _write(files, stored, about)
        fingerprint = json.loads(about.read_text(encoding="utf-8"))["fingerprint"]
        mapped = np.memmap(stored, np.uint8, mode="c", shape=files.shape)  # writes stay private
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            "cannot use the cache of decoded images", where=folder, found=error
        ) from error
    return MappedPixels(torch.from_numpy(mapped)), fingerprint


def _check_space(files: ImageFiles, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if files.nbytes > free:
        raise DataError(
            "no room for decoded images",
            where=folder,
            expected=f"{files.nbytes / 1e9:.1f} GB free",
            found=f"{free / 1e9:.1f} GB",
            remedy="set XDG_CACHE_HOME to a folder on a larger disk",
        )


def _write(files: ImageFiles, stored: Path, about: Path) -> None:
    """Write both files; each is complete under its name, or not there."""
    digest = hashlib.sha256(str(files.shape).encode())
    with replacing(stored) as temporary, temporary.open("wb") as file:
        for chunk in files.decoded():
            file.write(chunk.data)
            digest.update(chunk.data)
    digest.update(files.labels.numpy().data)
    write_json(about, {"fingerprint": digest.hexdigest()})
