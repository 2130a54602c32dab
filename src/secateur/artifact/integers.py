"""Context-adaptive coding of integer matrices.

Magnitudes are grouped into buckets: 0, 1, 2, 3, and then two for each octave, 4-5, 6-7, 8-11, 12-15
and so on. Buckets are coded adaptively. Signs and positions inside a bucket are stored as plain
bits.

**Context.** The matrix is divided into tiles. The expected magnitude of an element follows from the
preceding tiles: the mean of its row times the mean of its column over the mean of the matrix, as if
rows and columns were independent. The expected magnitude (in half octaves) and the mean of the
matrix (in octaves) select one of a few hundred contexts. Each context has its own counts of
buckets, shared by all matrices of a kind. A row or column of zeros, as a pruned channel leaves it,
thus needs almost no bits.

**Sparse.** If almost all elements are 0, the distances between nonzero elements are coded, then
these elements. The writer tries both codings and keeps the shorter one.

Counts are integers. Contexts depend only on single float64 additions, multiplications, divisions
and comparisons, so that they are the same on every platform.
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
"""Yields the indices of a part of the flattened matrix, and its integers."""

_OCTAVES = 31
LOWEST = np.array(
    [0, 1, 2, 3, *(low for k in range(2, _OCTAVES) for low in (2**k, 2**k + 2 ** (k - 1)))]
)
"""The smallest magnitude in each bucket."""

_EXTRA = np.array([0, 0, 0, 0, *(k - 1 for k in range(2, _OCTAVES) for _ in range(2))], np.int32)
"""Number of bits of the position inside each bucket."""

_TYPICAL = 2 * LOWEST + (1 << _EXTRA) - 1
"""Twice the mean magnitude in each bucket: an integer."""

# Half octaves; the square root of two is rounded to 8 bits to be equal on every platform.
_EXPECTED = np.array([0.02 * 2**k * half for k in range(13) for half in (1.0, 1.4140625)])
_OVERALL = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
_START = 0.5
"""Expected magnitude before any element is coded."""
_TRUST = 2.0
"""Weight of the matrix's mean, in elements, in the mean of a row or column."""
_FIRST, _INCREMENT = 1, 16
"""Initial count of a bucket, and its increment."""
_SLICE = 2**18
"""Number of integers whose signs and positions are coded at once."""
_SIGN = 7
"""The bit of a bucket's number that holds the sign: there are fewer than 2^7 buckets."""
_MEMORY = 65536
"""Counts of a context are halved once their sum exceeds this, so that it adapts to new data."""


@dataclass
class Bank:
    """Counts of buckets for each context, shared by all matrices of one kind.

    Attributes:
        most: Largest possible magnitude.
        counts: int64 (contexts, buckets), all positive.
    """

    most: int
    counts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        buckets = int(np.searchsorted(LOWEST, self.most, side="right"))
        contexts = (len(_EXPECTED) + 1) * (len(_OVERALL) + 1)
        self.counts = np.full((contexts, buckets), _FIRST, np.int64)

    def learn(self, contexts: npt.NDArray, buckets: Symbols) -> None:
        """Add observed buckets to the counts; both of shape (n,)."""
        shape = self.counts.shape
        counts = np.bincount(contexts * shape[1] + buckets, minlength=shape[0] * shape[1])
        self.counts += _INCREMENT * counts.reshape(shape)
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

    The memory for reading is bounded by about that of ``out``, for any stream.

    Args:
        stream: A writer or a reader.
        bank: Counts for magnitudes.
        gaps: Counts for distances between nonzero elements.
        matrix: Integers of ``shape``, magnitudes up to ``bank.most``; None when reading.
        shape: Rows and columns.
        out: int8, uint8 or int32 zeros of ``rows * columns`` elements that receive the result; None
            to allocate them.

    Returns:
        The matrix.

    Raises:
        ArtifactError: The stream is inconsistent.
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
    """Mark nonzero elements in ``out`` by 1, then replace each by its integer."""
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
    """Code all integers; yield them in parts.

    Buckets, with the sign in bit 7, are kept until their part is yielded. They are kept in ``out``
    if its shape fits, because an element is stored only after its bucket was read.
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
    """Running mean magnitudes of each row, each column and the matrix.

    Tiles are coded row by row. At each tile its rows are known up to its left edge and its columns
    down to its top edge, so that sums of rows are needed within one row of tiles only.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._rows, self._columns = np.zeros(0), np.zeros(0)
        self._total = self._count = 0.0

    def contexts(self, rows: slice, columns: slice) -> npt.NDArray[np.int64]:
        """Return the context of each element of a tile."""
        overall = (self._total + 4 * _START) / (self._count + 4)
        if columns.start == 0:
            self._rows = np.zeros(rows.stop - rows.start)
        above = self._columns[columns] if rows.start else np.zeros(columns.stop - columns.start)
        row = (self._rows + _TRUST * overall) / (columns.start + _TRUST)
        column = (above + _TRUST * overall) / (rows.start + _TRUST)
        expected = np.searchsorted(_EXPECTED, row[:, None] * (column / overall)[None])
        return expected * (len(_OVERALL) + 1) + int(np.searchsorted(_OVERALL, overall))

    def see(self, rows: slice, columns: slice, twice: npt.NDArray[np.int64]) -> None:
        """Add a tile; ``twice`` holds its magnitudes times 2."""
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
    """Code a tile's buckets, grouped by context to need one call for each context."""
    order = np.argsort(contexts.astype(np.uint8), kind="stable")  # fast for 8 bits
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
    """Code signs and positions inside buckets; yield the integers."""
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
