"""Encoded images in tar or Parquet files, any of which is read at any time.

The members of a tar file lie in it as they are, so that an index of offsets is enough. Parquet
files are read through Hugging Face's ``datasets``, which keeps an Arrow copy on the disk.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.console import progress
from secateur.data.pixel_store import default_cache
from secateur.disk import replacing
from secateur.errors import DataError
from secateur.imaging import SUFFIXES

LABEL = ".cls"
"""Suffix of the member of a tar file that holds an image's label, a decimal number."""


class Encoded(Protocol):
    """Encoded images in files, read in any order and from several threads.

    Attributes:
        labels: int64, shape (N,).
        names: Class names, where the files have them.
        fingerprint: Hexadecimal digits that stand for every byte of the files.
    """

    labels: Tensor
    fingerprint: str

    @property
    def names(self) -> tuple[str, ...] | None: ...

    def read(self, index: int) -> tuple[bytes, str]:
        """One image's bytes, and what errors call it."""
        ...


class TarShards:
    """The images of tar files, in their order.

    Args:
        paths: WebDataset shards.

    Raises:
        DataError: A file is damaged, or an image has no label.
    """

    names = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        with progress("index", len(paths)) as tick:
            parts = []
            for path in paths:
                parts.append(_index_of(path))
                tick.advance()
        self._shard = np.repeat(np.arange(len(parts)), [len(part["labels"]) for part in parts])
        self._offsets = np.concatenate([part["offsets"] for part in parts])
        self._sizes = np.concatenate([part["sizes"] for part in parts])
        self.labels = torch.from_numpy(np.concatenate([part["labels"] for part in parts]))
        digests = "\n".join(str(part["digest"]) for part in parts)
        self.fingerprint = hashlib.sha256(digests.encode()).hexdigest()

    def read(self, index: int) -> tuple[bytes, str]:
        """See :class:`Encoded`."""
        path, size = self._paths[self._shard[index]], int(self._sizes[index])
        with path.open("rb") as file:
            data = os.pread(file.fileno(), size, int(self._offsets[index]))
        return data, f"{path}, image {index}"


def _index_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Offsets, sizes, labels and digest of one tar file; cached while the file is the same."""
    status = path.stat()
    key = f"1 {path.absolute()} {status.st_size} {status.st_mtime_ns}"
    cached = default_cache() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.index.npz"
    try:
        with np.load(cached) as stored:
            return dict(stored)
    except (OSError, ValueError):
        pass
    index = _read_index(path)
    cached.parent.mkdir(parents=True, exist_ok=True)
    with replacing(cached) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **index)
    return index


def _read_index(path: Path) -> dict[str, npt.NDArray[Any]]:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, suffix = os.path.splitext(member.name)
                if not member.isfile():
                    continue
                if suffix.lower() in SUFFIXES:
                    images[key] = member.offset_data, member.size
                elif suffix == LABEL:
                    labels[key] = int(tar.extractfile(member).read(20))  # type: ignore[union-attr]
    except (OSError, ValueError, tarfile.TarError) as error:
        raise DataError("cannot read shard", where=path, found=error) from error
    missing = next((key for key in images if key not in labels), None)
    if missing is not None or not images:
        raise DataError(
            "shard does not fit",
            where=path,
            expected=f"images, each with a label in KEY{LABEL}",
            found=f"no label of {missing}" if missing else "no image",
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    offsets, sizes = np.array(list(images.values()), np.int64).T
    return {
        "offsets": offsets, "sizes": sizes, "digest": np.array(digest),
        "labels": np.array([labels[key] for key in images], np.int64),
    }  # fmt: skip


class ParquetShards:
    """The images of Parquet files, by Hugging Face's ``datasets``.

    Args:
        paths: Files with one column of encoded images and one of integer labels.

    Raises:
        DataError: The package is missing, or the columns are others.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # files are local: nothing is asked for
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                "Parquet files need a package", remedy="pip install 'secateur[datasets]'"
            ) from error
        datasets.disable_progress_bars()
        cache = str(default_cache().with_name("datasets"))
        files = [str(path) for path in paths]
        try:
            rows = datasets.load_dataset(
                "parquet", data_files=files, split="train", cache_dir=cache
            )
        except Exception as error:  # the package raises its own errors, with a traceback inside
            raise DataError("cannot read shards", where=paths[0], found=error) from error
        kinds = rows.features
        image = next((n for n, kind in kinds.items() if isinstance(kind, datasets.Image)), None)
        image = image or next((n for n in ("image", "img", "jpg") if n in kinds), None)
        label = next((n for n in ("label", "labels", "cls", "fine_label") if n in kinds), None)
        if image is None or label is None:
            raise DataError(
                "shards do not fit",
                where=paths[0],
                expected="columns image and label",
                found=", ".join(kinds),
            )
        self.names = tuple(getattr(kinds[label], "names", ())) or None
        self.labels = torch.tensor(rows[label][:], dtype=torch.int64)
        self._image, self._where = image, paths[0].parent
        if isinstance(kinds[image], datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))
        self._rows = rows.select_columns([image])
        self.fingerprint = hashlib.sha256(b"".join(map(_content, paths))).hexdigest()

    def read(self, index: int) -> tuple[bytes, str]:
        """See :class:`Encoded`."""
        value = self._rows[index][self._image]
        data = value["bytes"] if isinstance(value, dict) else value
        return data, f"{self._where}, row {index}"


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class JoinedShards:
    """Shards of several parts as one."""

    names = None

    def __init__(self, parts: Sequence[Encoded]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part.labels) for part in parts)])
        self.labels = torch.cat([part.labels for part in parts])
        self.fingerprint = " ".join(part.fingerprint for part in parts)

    def read(self, index: int) -> tuple[bytes, str]:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._parts[part].read(index - int(self._starts[part]))
