"""Conversion between tensors and integer matrices.

- int8, uint8, int32: the integers themselves.
- float32: the bits read as integers, minus the smallest, without trailing zero bits that all of
  these differences share. Scales with equal lower halves thus become integers of about ten bits.

A tensor of two or more dimensions becomes a matrix with a row for each index of the first
dimension; any other becomes one row.
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
"""From an ONNX data type to the dtype, for all types that can be coded."""

_MOST = 2**30 - 1
_FLOAT_HEAD = np.array([16, 16, 5], np.int32)
"""Bit widths of the header: low and high half of the smallest integer, and the number of dropped
zero bits."""


_CHUNK = 2**18
"""Number of elements converted at once."""


class Banks:
    """Adaptive counts for each kind of tensor, with matrices and vectors separate."""

    def __init__(self) -> None:
        self._known: dict[str, Bank] = {}

    def of(self, dtype: np.dtype, shape: tuple[int, ...]) -> Bank:
        """The counts for magnitudes of tensors of this dtype and rank."""
        return self._bank(
            f"{dtype.name} {min(len(shape), 2)}", 2**8 if dtype.itemsize == 1 else _MOST
        )

    @property
    def gaps(self) -> Bank:
        """The counts for distances between nonzero elements."""
        return self._bank("gaps", _MOST)

    def _bank(self, kind: str, most: int) -> Bank:
        if kind not in self._known:
            self._known[kind] = Bank(most)
        return self._known[kind]


def can_code(values: npt.NDArray) -> bool:
    """Whether :func:`code_tensor` can code a tensor of one of :data:`DTYPES`."""
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
        banks: Shared by all tensors of a file, in order.
        values: Tensor of that dtype and shape for which :func:`can_code` is true; None when
            reading.
        dtype: One of :data:`DTYPES`.
        shape: With at least one element.
        out: Flat zeros of that dtype that receive the result; None to allocate them.

    Returns:
        The tensor.

    Raises:
        ArtifactError: The stream is inconsistent.
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
    """Code float32: the smallest bit pattern, then each difference to it in units of 2^zeros."""
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
    """The bits of float32 as flat integers."""
    return np.ascontiguousarray(values).reshape(-1).view("<u4")


def _zeros(words: npt.NDArray[np.uint32], lowest: int) -> int:
    """Number of trailing zero bits that all differences to the smallest word share."""
    together = 0
    for start in range(0, len(words), _CHUNK):
        distances = words[start : start + _CHUNK] - np.uint32(lowest)
        together |= int(np.bitwise_or.reduce(distances))
    return (together & -together).bit_length() - 1 if together else 0
