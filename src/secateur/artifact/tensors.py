"""Tensors as matrices of integers, and back.

- int8, uint8, int32: the integers themselves.
- float32: their bits read as integers, from the smallest on, without the zero bits that all of
  these distances end with. Scales that share their lower halves thus become integers of about ten
  bits.

A tensor of two or more dimensions is a matrix by its first; any other is one row.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from secateur.artifact.integers import Bank, code_matrix
from secateur.artifact.stream import Stream
from secateur.errors import ArtifactError

FLOAT = 1
DTYPES: dict[int, np.dtype] = {
    FLOAT: np.dtype("<f4"),
    2: np.dtype("u1"),
    3: np.dtype("i1"),
    6: np.dtype("<i4"),
}
"""By ONNX's number of the data type, what can be coded."""

_MOST = 2**30 - 1
_FLOAT_HEAD = np.array([16, 16, 5], np.int32)
"""Widths: the smallest integer's low and high half, and how many zero bits are left out."""


_CHUNK = 2**18
"""Elements that are converted at a time."""


class Banks:
    """What has been learned so far of each kind of tensor, matrices and vectors apart."""

    def __init__(self) -> None:
        self._known: dict[str, Bank] = {}

    def of(self, dtype: np.dtype, shape: tuple[int, ...]) -> Bank:
        """The bank for magnitudes of tensors like this."""
        return self._bank(
            f"{dtype.name} {min(len(shape), 2)}", 2**8 if dtype.itemsize == 1 else _MOST
        )

    @property
    def gaps(self) -> Bank:
        """The bank for distances between integers that are not 0."""
        return self._bank("gaps", _MOST)

    def _bank(self, kind: str, most: int) -> Bank:
        if kind not in self._known:
            self._known[kind] = Bank(most)
        return self._known[kind]


def can_code(values: npt.NDArray) -> bool:
    """Tell whether :func:`code_tensor` can code a tensor of one of :data:`DTYPES`."""
    if values.size == 0 or values.size > _MOST:
        return False
    if values.dtype.kind == "f":
        words = _words(values)
        lowest = int(words.min())
        return (int(words.max()) - lowest) >> _zeros(words, lowest) <= _MOST
    return max(int(values.max()), -int(values.min())) <= _MOST


def code_tensor(
    stream: Stream,
    banks: Banks,
    values: npt.NDArray | None,
    dtype: np.dtype,
    shape: tuple[int, ...],
    out: npt.NDArray | None = None,
) -> npt.NDArray:
    """Code a tensor.

    Args:
        stream: A writer or a reader.
        banks: The same ones for all tensors of a file, in their order.
        values: Of that dtype and shape, and one that :func:`can_code`; None when reading.
        dtype: One of :data:`DTYPES`.
        shape: Of at least one element.
        out: Zeros of that dtype, flat, which receive what is read; None for new ones.

    Returns:
        The tensor.

    Raises:
        ArtifactError: The stream that is read contradicts itself.
    """
    rows = shape[0] if len(shape) > 1 else 1
    flat = (rows, math.prod(shape) // rows)
    code = _code_floats if dtype.kind == "f" else code_matrix
    if values is not None:
        code(stream, banks.of(dtype, shape), banks.gaps, values.reshape(flat), flat)
        return values
    if out is None:
        out = np.zeros(math.prod(shape), dtype)
    code(stream, banks.of(dtype, shape), banks.gaps, None, flat, out)
    return out.reshape(shape)


def _code_floats(
    stream: Stream,
    bank: Bank,
    gaps: Bank,
    values: npt.NDArray | None,
    shape: tuple[int, int],
    out: npt.NDArray | None = None,
) -> None:
    """Code float32: the lowest bit pattern, then the steps of 2^zeros from there to each."""
    if values is not None:
        words = _words(values)
        lowest = int(words.min())
        zeros = _zeros(words, lowest)
        head = np.array([lowest & 0xFFFF, lowest >> 16, zeros], np.int32)
        stream.bits(head, _FLOAT_HEAD)
        steps = ((words - np.uint32(lowest)) >> np.uint32(zeros)).astype(np.int32)
        code_matrix(stream, bank, gaps, steps.reshape(shape), shape)
        return
    assert out is not None
    low, high, zeros = stream.bits(None, _FLOAT_HEAD).tolist()
    lowest, steps, words = low + (high << 16), out.view("<i4"), out.view("<u4")
    code_matrix(stream, bank, gaps, None, shape, steps)
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        some = lowest + (steps[part].astype(np.int64) << zeros)
        if some.min() < 0 or some.max() >= 2**32:
            raise ArtifactError("a damaged stream", expected="32-bit words")
        words[part] = some


def _words(values: npt.NDArray) -> npt.NDArray[np.uint32]:
    """The bits of float32 as integers, flat."""
    return np.ascontiguousarray(values).reshape(-1).view("<u4")


def _zeros(words: npt.NDArray[np.uint32], lowest: int) -> int:
    """How many zero bits all distances from the lowest word end with."""
    together = 0
    for start in range(0, len(words), _CHUNK):
        distances = words[start : start + _CHUNK] - np.uint32(lowest)
        together |= int(np.bitwise_or.reduce(distances))
    return (together & -together).bit_length() - 1 if together else 0
