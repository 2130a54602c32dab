"""Shards of encoded images, larger than memory: indexed once, decoded when they are used.

    ROOT/train-*.tar    val-*.tar    test-*.tar      WebDataset: KEY.jpg (or the like), KEY.cls
    ROOT/train-*.parquet    ...                      a column of images and one of labels
    ROOT/classes.txt                                 a class name a line; without it, numbers

Parts are as those of a folder (:mod:`secateur.data.folder`). Any image can be read at any time
(:mod:`secateur.data.encoded`), so that order, splits and resumed trainings are as in memory.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.console import say
from secateur.data.dataset import DataSet
from secateur.data.encoded import Encoded, JoinedShards, ParquetShards, TarShards
from secateur.data.images import Images, MappedPixels
from secateur.data.listing import PARTS
from secateur.data.splits import split
from secateur.environment import cores
from secateur.errors import DataError
from secateur.imaging import PIXEL_LIMIT, Preparation, decode
from secateur.wording import counted

CACHED = 2**28
"""Bytes of decoded images up to which a selection is decoded once and kept."""

_WORKERS = cores()


class StreamedPixels(MappedPixels):
    """Images that are decoded when they are indexed, by several threads; see :class:`MappedPixels`.

    Selections of at most :data:`CACHED` bytes, such as calibration images or those of a scan, are
    decoded once.
    """

    def __init__(
        self, stored: _Decoder, order: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(stored, order, device)
        self._decoder = stored
        self._cached: Tensor | None = None

    @property
    def identity(self) -> str:
        """Hexadecimal digits that stand for the pixels; none is decoded."""
        order = b"" if self._order is None else self._order.numpy().tobytes()
        return hashlib.sha256(self._decoder.identity.encode() + order).hexdigest()

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """Decode some images: uint8 on :attr:`device`."""
        if int(np.prod(self.shape, dtype=np.int64)) > CACHED:
            return super().__getitem__(chosen)
        if self._cached is None:
            self._cached = super().__getitem__(slice(None))
        return self._cached[chosen]


class _Decoder:
    """All images of shards as the squares of a preparation: indexed, and nothing kept."""

    def __init__(self, encoded: Encoded, preparation: Preparation, max_pixels: int) -> None:
        self._encoded, self._preparation, self._max_pixels = encoded, preparation, max_pixels
        side = preparation.side
        self.shape = torch.Size((len(encoded.labels), preparation.channels, side, side))
        self._pool = ThreadPoolExecutor(_WORKERS, "decode")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def identity(self) -> str:
        geometry = self._preparation.to_dict()
        for name in ("mean", "std", "order"):
            del geometry[name]
        return f"{self._encoded.fingerprint} {geometry} {self._preparation.channels}"

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        every = range(len(self))[chosen] if isinstance(chosen, slice) else chosen.tolist()
        result = np.empty((len(every), *self.shape[1:]), np.uint8)

        def put(place: int, index: int) -> None:
            result[place] = self._decode(index)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata
            list(self._pool.map(put, range(len(every)), every))
        return torch.from_numpy(result)

    def _decode(self, index: int) -> npt.NDArray[np.uint8]:
        data, where = self._encoded.read(index)
        try:
            image = decode(io.BytesIO(data), self._preparation.channels, limit=self._max_pixels)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        return self._preparation.fit(image)


class ShardDataSet(DataSet):
    """Shards in a folder.

    Args:
        root: The folder.
        preparation: How images become squares; mean and standard deviation are not used.
        validation: As in :func:`secateur.data.load_folder`.
        test: Likewise.
        seed: Likewise.
        max_pixels: Largest width times height of an image.

    Raises:
        DataError: There is no training shard, or a file does not fit.
    """

    def __init__(
        self,
        root: Path,
        preparation: Preparation,
        *,
        validation: float = 0.2,
        test: float = 0.2,
        seed: int = 0,
        max_pixels: int = PIXEL_LIMIT,
    ) -> None:
        files = _list_shards(root)
        kind: type[TarShards | ParquetShards] = ParquetShards
        if files["train"][0].suffix == ".tar":
            kind = TarShards
        self.channels, self._preparation, self._max_pixels = (
            preparation.channels, preparation, max_pixels,
        )  # fmt: skip
        self._parts: dict[str, Encoded] = {part: kind(paths) for part, paths in files.items()}
        self.classes = _class_names(root, self._parts)
        self.report = tuple(
            f"{part}: {counted(len(self._parts[part].labels), 'image')} in "
            f"{counted(len(paths), 'shard')}"
            for part, paths in files.items()
        )
        labels = self._parts["train"].labels
        training = torch.arange(len(labels))
        last = "test" if "test" in files else "val"
        if last in files:
            self._last, self._drawn = self._parts[last], None
        else:
            training, self._drawn = split(labels, test, seed, self.classes)
            self._last = self._parts["train"]
        if "val" in files and "test" in files:
            self._own_validation = True
            count = len(self._parts["val"].labels)
            self._split = training, len(labels) + torch.arange(count)
        else:
            self._own_validation = False
            kept, drawn = split(labels[training], validation, seed, self.classes)
            self._split = training[kept], training[drawn]

    @cached_property
    def _source(self) -> Images:
        parts = [self._parts["train"], *([self._parts["val"]] if self._own_validation else [])]
        return self._images(parts[0] if len(parts) == 1 else JoinedShards(parts))

    @property
    def source(self) -> Images:
        """Training and validation images together."""
        return self._source

    @property
    def split(self) -> tuple[Tensor, Tensor]:
        """Indices into :attr:`source`, sorted: training, validation."""
        return self._split

    @cached_property
    def _test(self) -> Images:
        images = self._images(self._last)
        return images if self._drawn is None else images.take(self._drawn)

    @property
    def test(self) -> Images:
        """Images that are opened once, at the end."""
        return self._test

    def _images(self, encoded: Encoded) -> Images:
        pixels = StreamedPixels(_Decoder(encoded, self._preparation, self._max_pixels))
        return Images(pixels, encoded.labels, self.classes)

    def counts(self) -> dict[str, list[int]]:
        """``training``, ``validation`` and ``test`` to the images of each class; none is opened."""
        labels = [self.source.labels[indices] for indices in self.split]
        last = self._last.labels if self._drawn is None else self._last.labels[self._drawn]
        names = ("training", "validation", "test")
        return {
            name: torch.bincount(of, minlength=len(self.classes)).tolist()
            for name, of in zip(names, [*labels, last], strict=True)
        }

    def key(self) -> dict[str, Any]:
        """Class names, and the fingerprint of :attr:`source`."""
        return {"classes": list(self.classes), "fingerprint": self.source.fingerprint}

    def test_key(self) -> dict[str, Any]:
        """The fingerprint of :attr:`test`."""
        return {"test_fingerprint": self.test.fingerprint}


def _list_shards(root: Path) -> dict[str, list[Path]]:
    if not root.is_dir():
        raise DataError("no such folder of shards", where=root)
    there = sorted(p for p in root.iterdir() if p.suffix in (".tar", ".parquet") and p.is_file())
    files = {part: [p for p in there if p.name.startswith(names)] for part, names in PARTS.items()}
    files = {part: paths for part, paths in files.items() if paths}
    kinds = sorted({path.suffix for paths in files.values() for path in paths})
    if "train" not in files or len(kinds) > 1:
        raise DataError(
            "no shards" if len(kinds) < 2 else "shards of two kinds",
            where=root,
            expected="train-*.tar or train-*.parquet, and val-* or test-* likewise",
            found=", ".join(kinds) or "none",
        )
    ignored = len(there) - sum(map(len, files.values()))
    if ignored:
        say(f"{root}: {ignored} shards of no part are ignored")
    return files


def _class_names(root: Path, parts: dict[str, Encoded]) -> tuple[str, ...]:
    path = root / "classes.txt"
    count = 1 + max(int(part.labels.max()) for part in parts.values())
    if min(int(part.labels.min()) for part in parts.values()) < 0:
        raise DataError("a negative label", where=root)
    if path.is_file():
        names = tuple(path.read_text(encoding="utf-8").splitlines())
    else:
        names = parts["train"].names or tuple(map(str, range(count)))
    present = len(parts["train"].labels.unique())
    if count > len(names) or present < len(names):
        raise DataError(
            "labels and classes differ",
            where=path if path.is_file() else root,
            expected=f"training images of {len(names)} classes",
            found=f"of {present}, with labels up to {count - 1}",
        )
    return names
