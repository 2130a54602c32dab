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


class Banks:
    """What has been learned so far of each kind of tensor, matrices and vectors apart."""

    def __init__(self) -> None:
        self._known: dict[str, Bank] = {}

    def of(self, dtype: np.dtype, shape: tuple[int, ...]) -> Bank:
        """The bank for magnitudes of tensors like this."""
        kind = f"{dtype.name} {min(len(shape), 2)}"
        return self._known.setdefault(kind, Bank(2**8 if dtype.itemsize == 1 else _MOST))

    @property
    def gaps(self) -> Bank:
        """The bank for distances between integers that are not 0."""
        return self._known.setdefault("gaps", Bank(_MOST))


def can_code(values: npt.NDArray) -> bool:
    """Tell whether :func:`code_tensor` can code a tensor of one of :data:`DTYPES`."""
    if values.size == 0 or values.size > _MOST:
        return False
    if values.dtype.kind == "f":
        _, _, steps = _ladder(values)
        return int(steps.max()) <= _MOST
    return int(np.abs(values.astype(np.int64)).max()) <= _MOST


def code_tensor(
    stream: Stream,
    banks: Banks,
    values: npt.NDArray | None,
    dtype: np.dtype,
    shape: tuple[int, ...],
) -> npt.NDArray:
    """Code a tensor.

    Args:
        stream: A writer or a reader.
        banks: The same ones for all tensors of a file, in their order.
        values: Of that dtype and shape, and one that :func:`can_code`; None when reading.
        dtype: One of :data:`DTYPES`.
        shape: Of at least one element.

    Returns:
        The tensor.

    Raises:
        ArtifactError: The stream that is read contradicts itself.
    """
    rows = shape[0] if len(shape) > 1 else 1
    flat = (rows, math.prod(shape) // rows)
    bank = banks.of(dtype, shape)
    matrix = head = None
    if dtype.kind == "f":
        if values is not None:
            lowest, zeros, steps = _ladder(values)
            matrix = steps.astype(np.int32).reshape(flat)
            head = np.array([lowest & 0xFFFF, lowest >> 16, zeros], np.int32)
        low, high, zeros = stream.bits(head, _FLOAT_HEAD).tolist()
        steps = code_matrix(stream, bank, banks.gaps, matrix, flat).astype(np.int64)
        words = _within(low + (high << 16) + (steps << zeros), 0, 2**32 - 1)
        return words.astype("<u4").view(dtype).reshape(shape)
    if values is not None:
        matrix = values.astype(np.int32).reshape(flat)
    found = code_matrix(stream, bank, banks.gaps, matrix, flat)
    limits = np.iinfo(dtype)
    return _within(found, limits.min, limits.max).astype(dtype).reshape(shape)


def _ladder(values: npt.NDArray) -> tuple[int, int, npt.NDArray[np.int64]]:
    """The bits of float32 as integers: the lowest, and the steps of 2^zeros from there to each."""
    words = np.ascontiguousarray(values).view("<u4").astype(np.int64)
    lowest = int(words.min())
    together = int(np.bitwise_or.reduce(words - lowest, axis=None))
    zeros = (together & -together).bit_length() - 1 if together else 0
    return lowest, zeros, (words - lowest) >> zeros


def _within(found: npt.NDArray, low: int, high: int) -> npt.NDArray:
    if found.min() < low or found.max() > high:
        raise ArtifactError("a damaged stream", expected=f"integers in {low} to {high}")
    return found
