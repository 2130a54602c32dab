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
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from secateur.artifact.stream import Stream, Symbols, Writer
from secateur.errors import ArtifactError

Matrix = npt.NDArray[np.integer]
_Values = Iterator[tuple[slice, Symbols]]
"""Parts of a flat matrix, in order, with their integers."""

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
_SLICE = 2**18
"""Integers whose signs and places are coded at a time."""
_SIGN = 7
"""The bit of a bucket's number that holds the sign: there are fewer than 2^7 buckets."""
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
    stream: Stream,
    bank: Bank,
    gaps: Bank,
    matrix: Matrix | None,
    shape: tuple[int, int],
    out: Matrix | None = None,
) -> Matrix:
    """Code a matrix, dense or sparse.

    Reading takes little more memory than ``out``, whatever the stream holds.

    Args:
        stream: A writer or a reader.
        bank: For magnitudes.
        gaps: For distances between integers that are not 0.
        matrix: Integers of ``shape``, magnitudes up to ``bank.most``; None when reading.
        shape: Rows and columns.
        out: int8, uint8 or int32 zeros of ``rows * columns`` elements, which receive what is read;
            None for new ones.

    Returns:
        The matrix.

    Raises:
        ArtifactError: The stream that is read contradicts itself.
    """
    if matrix is not None:
        sparse = _is_shorter_sparse(bank, gaps, matrix)
        stream.bits(np.array([sparse], np.int32), np.ones(1, np.int32))
        (_write_sparse if sparse else _write_dense)(stream, bank, gaps, matrix)
        return matrix
    if out is None:
        out = np.zeros(shape[0] * shape[1], np.int32)
    if stream.bits(None, np.ones(1, np.int32))[0]:
        _read_sparse(stream, bank, gaps, out)
    else:
        for part, values in _dense(stream, bank, None, shape, out):
            _store(out, part, values)
    return out.reshape(shape)


def _is_shorter_sparse(bank: Bank, gaps: Bank, matrix: Matrix) -> bool:
    if 2 * np.count_nonzero(matrix) > matrix.size:
        return False
    lengths = []
    for write in (_write_dense, _write_sparse):
        trial = Writer()
        write(trial, copy.deepcopy(bank), copy.deepcopy(gaps), matrix)
        lengths.append(len(trial.to_bytes()))
    return lengths[1] < lengths[0]


def _write_dense(stream: Stream, bank: Bank, gaps: Bank, matrix: Matrix) -> None:
    for _ in _dense(stream, bank, matrix, (len(matrix), matrix.shape[1])):
        pass


def _write_sparse(stream: Stream, bank: Bank, gaps: Bank, matrix: Matrix) -> None:
    where = np.flatnonzero(matrix)
    stream.bits(np.array([len(where)], np.int32), np.array([31], np.int32))
    skipped = np.diff(where, prepend=-1).astype(np.int32) - 1
    _write_dense(stream, gaps, gaps, skipped[None])
    _write_dense(stream, bank, gaps, matrix.ravel()[where][None])


def _read_sparse(stream: Stream, bank: Bank, gaps: Bank, out: Matrix) -> None:
    """Mark the places of the integers in ``out`` by a 1, then replace each by its integer."""
    count = int(stream.bits(None, np.array([31], np.int32))[0])
    if count > len(out):
        raise ArtifactError(
            "a damaged stream", expected=f"at most {len(out)} integers", found=count
        )
    last = -1
    for _, skipped in _dense(stream, gaps, None, (1, count)):
        where = last + np.cumsum(np.abs(skipped).astype(np.int64) + 1)
        last = int(where[-1])
        if last >= len(out):
            raise ArtifactError(
                "a damaged stream", expected=f"an index below {len(out)}", found=last
            )
        out[where] = 1
    windows = (start + np.flatnonzero(out[start : start + _SLICE])
               for start in range(0, len(out), _SLICE))  # fmt: skip
    waiting = np.empty(0, np.int64)
    for _, values in _dense(stream, bank, None, (1, count)):
        while len(waiting) < len(values):
            waiting = np.concatenate([waiting, next(windows)])
        _store(out, waiting[: len(values)], values)
        waiting = waiting[len(values) :]


def _store(out: Matrix, where: slice | npt.NDArray, values: Symbols) -> None:
    limits = np.iinfo(out.dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise ArtifactError(
            "a damaged stream", expected=f"integers in {limits.min} to {limits.max}"
        )
    out[where] = values


def _dense(
    stream: Stream,
    bank: Bank,
    matrix: Matrix | None,
    shape: tuple[int, int],
    out: Matrix | None = None,
) -> _Values:
    """Code all integers; yield them part by part.

    Buckets are kept, with the signs in bit 7, until their part is yielded: in ``out`` itself where
    it is of that shape, since each of its elements is stored only after its bucket was read.
    """
    buckets: Matrix = np.empty(shape[0] * shape[1], np.uint8) if out is None else out
    if buckets.dtype == np.int8:
        buckets = buckets.view(np.uint8)
    grid, means = buckets.reshape(shape), _Means(shape)
    for rows, columns in _tiles(shape):
        contexts = means.contexts(rows, columns)
        tile = None
        if matrix is not None:
            tile = _bucket(np.abs(matrix[rows, columns].astype(np.int32))).ravel()
        coded = _code_buckets(stream, bank, tile, contexts.ravel()).reshape(contexts.shape)
        grid[rows, columns] = coded
        means.see(rows, columns, _TYPICAL[coded])
    return _inside(stream, None if matrix is None else matrix.ravel(), buckets)


def _tiles(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Tiles of 64 to 4096 integers, larger in a larger matrix, row by row of tiles."""
    area = min(max(shape[0] * shape[1] // 256, 64), 4096)
    height = min(shape[0], math.isqrt(area))
    width = min(shape[1], area // max(height, 1))
    for top in range(0, shape[0], max(height, 1)):
        for left in range(0, shape[1], max(width, 1)):
            yield (
                slice(top, min(top + height, shape[0])),
                slice(left, min(left + width, shape[1])),
            )


class _Means:
    """Mean magnitudes so far, of each row, each column, and all.

    Tiles come row by row of tiles. So the rows of a tile have all been seen up to its left edge,
    its columns down to its top edge, and sums of rows are only needed within one row of tiles.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._rows, self._columns = np.zeros(0), np.zeros(0)
        self._total = self._count = 0.0

    def contexts(self, rows: slice, columns: slice) -> npt.NDArray[np.int64]:
        """The context at each place of a tile."""
        overall = (self._total + 4 * _START) / (self._count + 4)
        if columns.start == 0:
            self._rows = np.zeros(rows.stop - rows.start)
        above = self._columns[columns] if rows.start else np.zeros(columns.stop - columns.start)
        row = (self._rows + _TRUST * overall) / (columns.start + _TRUST)
        column = (above + _TRUST * overall) / (rows.start + _TRUST)
        expected = np.searchsorted(_EXPECTED, row[:, None] * (column / overall)[None])
        return expected * (len(_OVERALL) + 1) + int(np.searchsorted(_OVERALL, overall))

    def see(self, rows: slice, columns: slice, twice: npt.NDArray[np.int64]) -> None:
        """Add a tile, of which ``twice`` has twice the magnitudes."""
        self._rows += twice.sum(axis=1) / 2
        if rows.stop < self._shape[0]:  # there are tiles below
            if rows.start == columns.start == 0:
                self._columns = np.zeros(self._shape[1])
            self._columns[columns] += twice.sum(axis=0) / 2
        self._total += float(twice.sum()) / 2
        self._count += twice.size


def _code_buckets(
    stream: Stream, bank: Bank, known: Symbols | None, contexts: npt.NDArray[np.int64]
) -> Symbols:
    """Code a tile's buckets, those of one context together, so that each needs one call."""
    order = np.argsort(contexts.astype(np.uint8), kind="stable")  # quick for few bits
    sizes = np.bincount(contexts)
    coded, start = np.empty(len(contexts), np.int32), 0
    for context in np.flatnonzero(sizes).tolist():
        places = order[start : start + int(sizes[context])]
        some = None if known is None else known[places]
        coded[places] = stream.categorical(some, len(places), bank.counts[context])
        start += len(places)
    bank.learn(contexts, coded)
    return coded


def _bucket(magnitudes: npt.NDArray) -> Symbols:
    return (np.searchsorted(LOWEST, magnitudes, side="right") - 1).astype(np.int32)


def _inside(stream: Stream, known: Matrix | None, buckets: npt.NDArray) -> _Values:
    """Code signs, and places inside buckets; yield the integers."""
    parts = [slice(start, start + _SLICE) for start in range(0, len(buckets), _SLICE)]
    for part in parts:
        filled = buckets[part] > 0
        signs = None if known is None else (known[part][filled] < 0).astype(np.int32)
        signs = stream.bits(signs, np.ones(np.count_nonzero(filled), np.int32))
        buckets[part][filled] |= (signs << _SIGN).astype(buckets.dtype)

    def filled_buckets(i: int) -> npt.NDArray:
        some = buckets[parts[i]]
        return some[some > 0] & (1 << _SIGN) - 1

    def places(i: int) -> Symbols:
        assert known is not None
        magnitudes = np.abs(known[parts[i]].astype(np.int32))
        return (magnitudes[magnitudes > 0] - LOWEST[filled_buckets(i)]).astype(np.int32)

    coded = stream.bits_in_parts(
        None if known is None else places, lambda i: _EXTRA[filled_buckets(i)], len(parts)
    )
    for i, inside in enumerate(coded):
        some = buckets[parts[i]]
        magnitudes = LOWEST[filled_buckets(i)] + inside
        values = np.zeros(len(some), np.int32)
        values[some > 0] = np.where(some[some > 0] >> _SIGN, -magnitudes, magnitudes)
        yield parts[i], values
