"""Integers in rows and columns, coded by what was seen nearby.

A magnitude falls into a bucket: 0, 1, 2, 3, and then two for each octave, 4-5, 6-7, 8-11, 12-15 and
so on. Buckets are coded adaptively; a sign, and the place inside a bucket, are bits as they are.

**Context.** The matrix is cut into tiles. What to expect at a place follows from the tiles before:
the mean magnitude of its row times that of its column over that of the whole matrix, as if rows and
columns were independent. That (in half octaves) and the mean of the whole matrix (in octaves)
choose one of a few hundred contexts, each with its own counts of buckets, which all matrices of a
kind share. A pruned channel is therefore a row, and in the next layer a column, that costs next to
nothing.

**Sparse.** Where nearly all is 0, the distances between the others are coded, and then the others.
The writer tries both ways and keeps the shorter one.

Counts are integers, and of float64 nothing but single additions, multiplications, divisions and
comparisons decides, so that every platform finds the same contexts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from secateur.artifact.stream import CHUNK_BITS, Stream, Symbols, Writer
from secateur.errors import ArtifactError

Matrix = npt.NDArray[np.int32]
Buckets = npt.NDArray[np.uint8]
_Way = Callable[[Stream, "Bank", "Bank", Matrix | None, tuple[int, int]], Matrix]

_OCTAVES = 31
LOWEST = np.array(
    [0, 1, 2, 3, *(low for k in range(2, _OCTAVES) for low in (2**k, 2**k + 2 ** (k - 1)))]
)
"""The smallest magnitude in each bucket."""

_EXTRA = np.array([0, 0, 0, 0, *(k - 1 for k in range(2, _OCTAVES) for _ in range(2))], np.int32)
"""Bits that tell the place inside each bucket."""

_TYPICAL = 2 * LOWEST + (1 << _EXTRA) - 1
"""Twice the mean magnitude in each bucket: an integer."""

# Half octaves; the root of two to 8 bits, as the same number everywhere.
_EXPECTED = np.array([0.02 * 2**k * half for k in range(13) for half in (1.0, 1.4140625)])
_OVERALL = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
_START = 0.5
"""What is expected of a matrix of which nothing is known."""
_TRUST = 2.0
"""Integers that count for the matrix's mean in that of a row or a column."""
_FIRST, _SEEN = 1, 16
"""What a bucket counts before it was seen, and what each time adds."""
_SLICE = 2**20
"""Integers whose signs and places are coded at a time."""
_MEMORY = 65536
"""Counts of a context are halved when they sum to more, so that it can change its mind."""


@dataclass
class Bank:
    """Counts of buckets by context, shared by all matrices of one kind.

    Attributes:
        most: The largest magnitude there can be.
        counts: int64 (contexts, buckets), all positive.
    """

    most: int
    counts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        buckets = int(np.searchsorted(LOWEST, self.most, side="right"))
        contexts = (len(_EXPECTED) + 1) * (len(_OVERALL) + 1)
        self.counts = np.full((contexts, buckets), _FIRST, np.int64)

    def learn(self, contexts: npt.NDArray, buckets: Symbols) -> None:
        """Count what was seen; both of shape (n,)."""
        shape = self.counts.shape
        seen = np.bincount(contexts * shape[1] + buckets, minlength=shape[0] * shape[1])
        self.counts += _SEEN * seen.reshape(shape)
        full = self.counts.sum(axis=1) > _MEMORY
        self.counts[full] = (self.counts[full] + 1) >> 1


def code_matrix(
    stream: Stream, bank: Bank, gaps: Bank, matrix: Matrix | None, shape: tuple[int, int]
) -> Matrix:
    """Code a matrix, dense or sparse.

    Args:
        stream: A writer or a reader.
        bank: For magnitudes.
        gaps: For distances between integers that are not 0.
        matrix: int32 of ``shape``, magnitudes up to ``bank.most``; None when reading.
        shape: Rows and columns.

    Returns:
        The matrix.

    Raises:
        ArtifactError: The stream that is read contradicts itself.
    """
    sparse = None
    if matrix is not None:
        both = [_length(way, bank, gaps, matrix) for way in (_dense, _sparse)]
        sparse = np.array([both[1] < both[0]], np.int32)
    way = _sparse if stream.bits(sparse, np.ones(1, np.int32))[0] else _dense
    return way(stream, bank, gaps, matrix, shape)


def _length(way: _Way, bank: Bank, gaps: Bank, matrix: Matrix) -> int:
    trial = Writer()
    way(trial, copy.deepcopy(bank), copy.deepcopy(gaps), matrix, (len(matrix), matrix.shape[1]))
    return len(trial.to_bytes())


def _dense(
    stream: Stream, bank: Bank, gaps: Bank, matrix: Matrix | None, shape: tuple[int, int]
) -> Matrix:
    known = None if matrix is None else _bucket(np.abs(matrix))
    buckets, means = np.zeros(shape, np.uint8), _Means(shape)
    for rows, columns in _tiles(shape):
        contexts = means.contexts(rows, columns)
        tile = None if known is None else known[rows, columns].ravel()
        found = _code_buckets(stream, bank, tile, contexts.ravel()).reshape(contexts.shape)
        buckets[rows, columns] = found
        means.see(rows, columns, _TYPICAL[found])
    values = _inside(stream, None if matrix is None else matrix.ravel(), buckets.ravel())
    return values.reshape(shape)


def _sparse(
    stream: Stream, bank: Bank, gaps: Bank, matrix: Matrix | None, shape: tuple[int, int]
) -> Matrix:
    size = shape[0] * shape[1]
    where = values = count = skipped = None
    if matrix is not None:
        where = np.flatnonzero(matrix)
        values, count = matrix.ravel()[where][None], np.array([len(where)], np.int32)
        skipped = np.diff(where, prepend=-1).astype(np.int32)[None] - 1
    count = stream.bits(count, np.array([31], np.int32))
    if count[0] > size:
        raise ArtifactError("a damaged stream", expected=f"at most {size} integers", found=count[0])
    inside = (1, int(count[0]))
    skipped = _dense(stream, gaps, gaps, skipped, inside)
    where = np.cumsum(np.abs(skipped[0]).astype(np.int64) + 1) - 1
    if len(where) and where[-1] >= size:
        raise ArtifactError("a damaged stream", expected=f"an index below {size}", found=where[-1])
    found = np.zeros(size, np.int32)
    found[where] = _dense(stream, bank, gaps, values, inside)[0]
    return found.reshape(shape)


def _tiles(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Tiles of 64 to 4096 integers, larger in a larger matrix, row by row of tiles."""
    area = min(max(shape[0] * shape[1] // 256, 64), 4096)
    height = min(shape[0], _root(area))
    width = min(shape[1], area // max(height, 1))
    return [
        (slice(top, min(top + height, shape[0])), slice(left, min(left + width, shape[1])))
        for top in range(0, shape[0], max(height, 1))
        for left in range(0, shape[1], max(width, 1))
    ]


def _root(area: int) -> int:
    root = 1
    while (root + 1) ** 2 <= area:
        root += 1
    return root


class _Means:
    """Mean magnitudes so far, of each row, each column, and all."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._rows, self._columns = np.zeros((2, shape[0])), np.zeros((2, shape[1]))
        self._total = self._count = 0.0

    def contexts(self, rows: slice, columns: slice) -> npt.NDArray[np.int64]:
        """The context at each place of a tile."""
        overall = (self._total + 4 * _START) / (self._count + 4)
        row, column = (
            (seen[0, place] + _TRUST * overall) / (seen[1, place] + _TRUST)
            for seen, place in ((self._rows, rows), (self._columns, columns))
        )
        expected = np.searchsorted(_EXPECTED, row[:, None] * (column / overall)[None])
        return expected * (len(_OVERALL) + 1) + int(np.searchsorted(_OVERALL, overall))

    def see(self, rows: slice, columns: slice, twice: npt.NDArray[np.int64]) -> None:
        """Take note of a tile, given twice its magnitudes."""
        self._rows[0, rows] += twice.sum(axis=1) / 2
        self._columns[0, columns] += twice.sum(axis=0) / 2
        self._rows[1, rows] += twice.shape[1]
        self._columns[1, columns] += twice.shape[0]
        self._total += float(twice.sum()) / 2
        self._count += twice.size


def _code_buckets(
    stream: Stream, bank: Bank, known: Symbols | None, contexts: npt.NDArray[np.int64]
) -> Symbols:
    """Code a tile's buckets, those of one context together, so that each needs one call."""
    order = np.argsort(contexts.astype(np.uint8), kind="stable")  # quick for few bits
    sizes = np.bincount(contexts)
    found, start = np.empty(len(contexts), np.int32), 0
    for context in np.flatnonzero(sizes).tolist():
        places = order[start : start + int(sizes[context])]
        some = None if known is None else known[places]
        found[places] = stream.categorical(some, len(places), bank.counts[context])
        start += len(places)
    bank.learn(contexts, found)
    return found


def _bucket(magnitudes: npt.NDArray) -> Symbols:
    return (np.searchsorted(LOWEST, magnitudes, side="right") - 1).astype(np.int32)


def _inside(stream: Stream, known: Symbols | None, buckets: Buckets) -> Symbols:
    """Code signs and places inside buckets; return the integers.

    In slices, where the order of the bits allows it, so that a large tensor needs little more
    memory than itself.
    """
    negative = np.zeros(len(buckets), np.bool_)
    values = np.zeros(len(buckets), np.int32)
    for part in _slices(buckets):
        filled = buckets[part] > 0
        signs = None if known is None else (known[part][filled] < 0).astype(np.int32)
        one = np.ones(int(filled.sum()), np.int32)
        negative[part][filled] = stream.bits(signs, one).astype(np.bool_)
    for part in _slices(buckets):
        filled = buckets[part] > 0
        some = buckets[part][filled]
        rest = None
        if known is not None:
            rest = (np.abs(known[part][filled]) - LOWEST[some]).astype(np.int32)
        places = stream.bits(rest, _EXTRA[some])
        values[part][filled] = (LOWEST[some] + places) * (1 - 2 * negative[part][filled])
    return values


def _slices(buckets: Buckets) -> list[slice]:
    """Parts of a matrix whose bits come one after another: all of it, if high halves come last."""
    if buckets.size and _EXTRA[buckets.max()] > CHUNK_BITS:
        return [slice(0, len(buckets))]
    return [slice(start, start + _SLICE) for start in range(0, len(buckets), _SLICE)]
