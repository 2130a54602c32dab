"""Affine quantization: integers that represent evenly spaced real numbers.

    Q(x) = clamp(round(x / delta) + z, low, high)        D(q) = (q - z) delta

``round`` rounds half to even before the zero point z is added, as ONNX QuantizeLinear does; since z
is an integer, this equals round(x / delta + z) except at exact halves (Jacob et al. 2018, section
2.1; Krishnamoorthi 2018, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int32]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Grid:
    """The set of integers.

    Attributes:
        bits: 2 to 16.
        signed: Two's complement, else unsigned.
        symmetric: The zero point is 0 and the lowest integer is not used, so that the range is
            symmetric: int8 is -127 to 127. Needs ``signed``.
        reach: The largest magnitude of a symmetric grid, if less than the bits allow.
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    reach: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"need 2 to 16 bits, found {self.bits}")
        if self.symmetric and not self.signed:
            raise ValueError("a symmetric grid is signed")
        widest = 2 ** (self.bits - 1) - 1
        if self.reach is not None and not (self.symmetric and 1 <= self.reach <= widest):
            raise ValueError(f"need a symmetric grid's reach in 1 to {widest}, found {self.reach}")

    @property
    def low(self) -> int:
        """The lowest integer."""
        if self.symmetric:
            return -self.high
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The highest integer."""
        return self.reach or 2 ** (self.bits - int(self.signed)) - 1


UINT8 = Grid(8)
INT8_SYMMETRIC = Grid(8, signed=True, symmetric=True)


@dataclass(frozen=True, eq=False)
class Affine:
    """Scale and zero point of a tensor, or one of each for each slice along an axis.

    Attributes:
        delta: Step between neighbors, float32, positive; shape () or (slices,).
        zero_point: The integer that represents 0.0; shape of ``delta``.
        grid: The set of integers.
        axis: Axis of ``delta``; None for a scalar.
    """

    delta: npt.NDArray[np.float32]
    zero_point: Integers
    grid: Grid
    axis: int | None = None

    def quantize(self, x: Floats) -> Integers:
        """Return Q(x) as int32, the shape of ``x``."""
        delta, zero_point = self._along(x.ndim)
        return quantize(x, delta, zero_point, self.grid.low, self.grid.high)

    def dequantize(self, q: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Return D(q) as float32, the shape of ``q``."""
        delta, zero_point = self._along(q.ndim)
        return dequantize(q, delta, zero_point).astype(np.float32)

    def _along(self, dimensions: int) -> tuple[npt.NDArray[np.float32], Integers]:
        if self.axis is None:
            return self.delta, self.zero_point
        shape = [1] * dimensions
        shape[self.axis] = -1
        return self.delta.reshape(shape), self.zero_point.reshape(shape)


def quantize(
    x: npt.ArrayLike,
    delta: npt.ArrayLike,
    zero_point: npt.ArrayLike,
    low: int = 0,
    high: int = 255,
) -> Integers:
    """Return clamp(round(x / delta) + zero_point, low, high) as int32; arguments broadcast.

    The division uses the precision of ``x``: float32 as in ONNX QuantizeLinear, float64 for Python
    numbers.

    Example:
        >>> int(quantize(0.75, 0.01, 128))
        203
    """
    x = np.asarray(x)
    kind = x.dtype if np.issubdtype(x.dtype, np.floating) else np.dtype(np.float64)
    steps = np.rint(np.divide(x, np.asarray(delta, kind), dtype=kind))
    # Clamp before the cast, which is undefined for floats beyond int32.
    bounded = np.clip(steps + np.asarray(zero_point, np.float64), low, high)
    return bounded.astype(np.int32)


def dequantize(
    q: npt.ArrayLike, delta: npt.ArrayLike, zero_point: npt.ArrayLike
) -> npt.NDArray[np.floating]:
    """Return (q - zero_point) * delta in the precision of ``delta``; arguments broadcast."""
    delta = np.asarray(delta)
    shifted = np.asarray(q, np.int64) - np.asarray(zero_point, np.int64)
    return shifted.astype(delta.dtype) * delta


def from_range(
    low: npt.ArrayLike, high: npt.ArrayLike, grid: Grid, axis: int | None = None
) -> Affine:
    """Choose delta and zero point for values in [``low``, ``high``].

    The range is widened to include 0.0, which must be exactly representable for padding and ReLU:
    delta = (high - low) / (grid.high - grid.low), and the zero point is the integer nearest to
    grid.low - low / delta. On a symmetric grid delta = max(|low|, |high|) / grid.high. The range
    [0, 0] gets a delta of 1.

    Raises:
        ValueError: A bound is not finite, or ``low`` is above ``high``.
    """
    lowest, highest = np.asarray(low, np.float64), np.asarray(high, np.float64)
    finite = np.isfinite(lowest).all() and np.isfinite(highest).all()
    if not (finite and (lowest <= highest).all()):
        raise ValueError(f"need finite low <= high, found {lowest} and {highest}")
    lowest, highest = np.minimum(lowest, 0), np.maximum(highest, 0)
    if grid.symmetric:
        wide = np.maximum(-lowest, highest) / grid.high
    else:
        wide = (highest - lowest) / (grid.high - grid.low)
    tiny = float(np.finfo(np.float32).tiny)
    delta = np.asarray(np.where(highest > lowest, np.maximum(wide, tiny), 1.0), np.float32)
    if grid.symmetric:
        zero_point = np.zeros(delta.shape, np.int32)
    else:
        nearest = np.rint(grid.low - lowest / delta.astype(np.float64))
        zero_point = np.clip(nearest, grid.low, grid.high).astype(np.int32)
    return Affine(delta, zero_point, grid, axis)


def from_tensor(x: Floats, grid: Grid, axis: int | None = None) -> Affine:
    """Choose delta and zero point for the values of ``x``, per slice along ``axis`` if given."""
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    return from_range(x.min(axis=others), x.max(axis=others), grid, axis)
