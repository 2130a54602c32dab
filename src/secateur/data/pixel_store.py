"""Decodes image files once, into memory or into a memory-mapped file.

The file holds the 8-bit squares of :meth:`secateur.imaging.Preparation.fit` in order, without a
header. Its name is a hash of the files' paths, sizes and modification times, the labels and the
preparation. Later runs reuse it unless a file changed. The fingerprint of its pixels is stored next
to it and checked whenever the file is opened; a damaged file is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.console import progress, say
from secateur.data.images import MappedPixels, Pixels, evenly_spaced, fingerprint_of
from secateur.disk import read_bytes, replacing, write_json
from secateur.environment import cores
from secateur.errors import DataError, StoreError
from secateur.imaging import PIXEL_LIMIT, Preparation, decode

MEMORY_LIMIT = 2**30
"""Largest size of decoded images in memory, in bytes; larger sets are memory-mapped."""

_VERSION = 1  # format version; raise it if the same images give other bytes
_CHUNK = 256  # images decoded between two writes


@dataclass(frozen=True)
class ImageFiles:
    """Files to decode, in order.

    Attributes:
        root: Base of relative paths.
        files: Files with labels.
        preparation: Image preparation; mean and standard deviation are not used.
        max_pixels: Largest width times height of a file.
    """

    root: Path
    files: Sequence[tuple[Path, int]]
    preparation: Preparation
    max_pixels: int = PIXEL_LIMIT

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of all decoded images: (N, C, S, S)."""
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
        """Name of the decoded file: 32 hexadecimal digits."""
        geometry = self.preparation.to_dict()
        del geometry["mean"], geometry["std"], geometry["order"]
        head = [_VERSION, geometry, self.preparation.channels, os.path.abspath(self.root)]
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for path, label in self.files:
            status = path.stat()
            name = os.fsencode(path.relative_to(self.root))
            digest.update(b"%b\0%d %d %d\n" % (name, label, status.st_size, status.st_mtime_ns))
        return digest.hexdigest()[:32]

    def spread(self, count: int) -> ImageFiles:
        """At most ``count`` of the files, evenly spaced."""
        if count >= len(self.files):
            return self
        chosen = evenly_spaced(len(self.files), count).tolist()
        return replace(self, files=[self.files[index] for index in chosen])

    def decoded(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the images in order, in batches of uint8 (n, C, S, S).

        Raises:
            DataError: A file cannot be read; the message names the first such file.
        """
        paths = [path for path, _ in self.files]
        # Pillow releases the interpreter lock to decode and resize, so threads suffice.
        with (
            warnings.catch_warnings(),
            ThreadPoolExecutor(cores()) as pool,
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
    """Decode ``files``, or reuse decoded images.

    Args:
        files: Files to decode.
        memory: Largest size of decoded images in memory, in bytes; below it no file is written.
        cache: Folder of the decoded file; None for :func:`default_cache`.

    Returns:
        The pixels, uint8 (N, C, S, S), and the fingerprint of the resulting
        :class:`secateur.data.Images`.

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
        result = _stored(files, stored, about)
        if result is None:
            folder.mkdir(parents=True, exist_ok=True)
            _check_space(files, folder)
            fingerprint = _write(files, stored, about)
            result = _mapped(files, stored), fingerprint
    except (OSError, ValueError) as error:
        raise DataError(
            "cannot use the cache of decoded images", where=folder, found=error
        ) from error
    return result


def _stored(files: ImageFiles, stored: Path, about: Path) -> tuple[MappedPixels, str] | None:
    """Return the images of an earlier call; None if they are missing or damaged."""
    if not (stored.is_file() and about.is_file()):
        return None
    with suppress(StoreError, ValueError, KeyError, TypeError, RecursionError):
        fingerprint = json.loads(read_bytes(about, 2**16))["fingerprint"]
        if stored.stat().st_size == files.nbytes:
            pixels = _mapped(files, stored)
            if fingerprint_of(pixels, files.labels) == fingerprint:
                return pixels, fingerprint
    say(f"{stored} is damaged: the images are decoded again")
    return None


def _mapped(files: ImageFiles, stored: Path) -> MappedPixels:
    mapped = np.memmap(stored, np.uint8, mode="c", shape=files.shape)  # copy-on-write
    return MappedPixels(torch.from_numpy(mapped))


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


def _write(files: ImageFiles, stored: Path, about: Path) -> str:
    """Write both files atomically; return the fingerprint."""
    digest = hashlib.sha256(str(files.shape).encode())
    with replacing(stored) as temporary, temporary.open("wb") as file:
        for chunk in files.decoded():
            file.write(chunk.data)
            digest.update(chunk.data)
    digest.update(files.labels.numpy().data)
    write_json(about, {"fingerprint": digest.hexdigest()})
    return digest.hexdigest()
