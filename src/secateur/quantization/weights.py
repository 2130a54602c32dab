"""Grids of weights and rounding to them, with an option against saturation.

Processors with AVX2 but no VNNI multiply uint8 activations by int8 weights with ``vpmaddubsw``,
which adds two neighboring products in 16 bits and saturates: 255 * (127 + 127) is beyond 32,767.
Runtimes then give wrong logits without a warning. Rows in which no two weights of one sign sum to
more than 128 cannot saturate, in any order, since 255 * 128 = 32,640. Such files are exact on every
processor with the fast kernels; the cost is at most one bit of a row's resolution, and less for
rows with one outlier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.quantization.affine import Affine, Grid, Integers

PAIR = 128
"""Largest sum of two weights of one sign: 255 * 128 < 2^15."""

# A bias may use a quarter of int32, so that the accumulator cannot overflow: 255 * 127 * K is below
# 2^30 for K up to 33,000 products.
LARGEST_BIAS = 2**30

_LOWER = 0xA6D7
"""The lower half of the bits of every scale of a weight."""

_SHRINKS = np.linspace(1.0, 0.3, 29)
"""Scales tried, relative to the one that clips nothing."""

Weight = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightRule:
    """The rule of a weight; always symmetric, because a zero point would cost time.

    Attributes:
        bits: 2 to 8.
        per_channel: A scale for each output channel, else one for the tensor.
        saturation_free: No two weights of one sign in a row sum to more than 128.
    """

    bits: int = 8
    per_channel: bool = True
    saturation_free: bool = True

    @property
    def grid(self) -> Grid:
        """The grid of stored weights."""
        return Grid(self.bits, signed=True, symmetric=True)

    @property
    def narrow_grid(self) -> Grid:
        """The widest grid that cannot saturate for any integers."""
        half = PAIR // 2
        return Grid(self.bits, True, True, reach=half) if self.may_saturate else self.grid

    @property
    def may_saturate(self) -> bool:
        """Whether integers of the grid can saturate and must be limited."""
        return self.saturation_free and 2 * self.grid.high > PAIR


def choose_scales(
    weight: Weight,
    rule: WeightRule,
    bias: Weight | None = None,
    input_scale: npt.ArrayLike = 1.0,
) -> Affine:
    """Choose scales of a weight such that its bias fits int32.

    At 8 bits nothing is clipped: delta = max |w| / 127, or, free of saturation, the largest sum of
    two weights of one sign over 127, so that they sum to at most 128 once rounded. Below 8 bits the
    scale minimizes the squared error, which clips slightly (Nagel et al. 2021, section 3.1.2).

    The bias of a row of (almost) zeros would overflow at the row's own scale; the scale of such a
    row is therefore determined by its bias.

    Args:
        weight: Shape (rows, ...).
        rule: Bits, granularity and saturation freedom.
        bias: Shape (rows,), or None.
        input_scale: Scale of the input activations; scalar, positive.

    Returns:
        Scales of shape (rows,) with axis 0, or of shape (), of few digits.
    """
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(axis=1).astype(np.float64)
    if rule.may_saturate:
        wide = np.maximum(largest, _largest_pair(rows)) / 127
    else:
        wide = largest / rule.grid.high
    if not rule.per_channel:
        rows, wide, largest = (
            rows.reshape(1, -1),
            wide.max(keepdims=True),
            largest.max(keepdims=True),
        )
    if rule.bits < 8:
        wide = wide * _least_squares(rows, wide, rule.grid)
    wide = np.where(largest > 0, wide, 1.0)
    if bias is not None:
        needed = np.abs(bias).astype(np.float64) / (float(np.asarray(input_scale)) * LARGEST_BIAS)
        needed = needed if rule.per_channel else needed.max(keepdims=True)
        wide = np.where((largest == 0) & (needed > 0), needed, np.maximum(wide, needed))
    delta = few_digits(np.maximum(wide, np.finfo(np.float32).tiny))
    if not rule.per_channel:
        return Affine(delta[0], np.zeros((), np.int32), rule.grid)
    return Affine(delta, np.zeros(len(delta), np.int32), rule.grid, axis=0)


def round_weight(weight: Weight, affine: Affine, rule: WeightRule) -> Integers:
    """Return the integers nearest to ``weight`` that satisfy ``rule``, int32 of its shape."""
    integers = affine.quantize(weight)
    return without_saturation(integers) if rule.may_saturate else integers


def without_saturation(integers: Integers) -> Integers:
    """Clip each row so that no two integers of one sign in it sum to more than 128.

    If the second largest is beyond 64, both are clipped to 64; otherwise only the largest is
    clipped.
    """
    rows = integers.reshape(len(integers), -1)
    clipped = np.minimum(rows, _cap(rows)[:, None])
    return np.maximum(clipped, -_cap(-rows)[:, None]).reshape(integers.shape)


def is_saturation_free(integers: npt.NDArray[np.integer]) -> bool:
    """Whether no two integers of one sign in a row sum to more than 128."""
    rows = integers.reshape(len(integers), -1).astype(np.int32)
    return bool((_largest_pair(rows) <= PAIR).all())


def few_digits(scale: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Round positive scales up to floats with a common lower half, by at most 0.8 %.

    This does not cost accuracy, because integers are chosen for the rounded scale, and a packed
    scale needs little more than one byte instead of four. The lower half is odd: if it were zero,
    products of scales would be short binary fractions, sums would often be exactly between two
    steps, and runtimes would round them differently.
    """
    words = np.asarray(scale, np.float32).view(np.uint32).astype(np.int64)
    up = -((_LOWER - words) >> 16 << 16) + _LOWER
    return up.astype(np.uint32).view(np.float32)


def _cap(rows: npt.NDArray) -> npt.NDArray:
    _, second = _two_largest(rows)
    half = PAIR // 2
    return np.maximum(half, PAIR - np.minimum(second, half))


def _largest_pair(rows: npt.NDArray) -> npt.NDArray:
    """Largest magnitude in each row of a sum of two entries of one sign, or of a single one."""
    return np.maximum(sum(_two_largest(rows)), sum(_two_largest(-rows)))


def _two_largest(rows: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """The two largest entries of each row, at least 0."""
    if rows.shape[1] < 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    top = np.maximum(np.partition(rows, -2, axis=1)[:, -2:], 0)
    return top[:, 1], top[:, 0]


def _least_squares(rows: Weight, wide: npt.NDArray, grid: Grid) -> npt.NDArray:
    """For each row, the factor on its scale with the smallest squared error."""
    best, least = np.ones(len(rows)), np.full(len(rows), np.inf)
    for factor in _SHRINKS:
        delta = np.maximum(wide * factor, np.finfo(np.float32).tiny)[:, None].astype(np.float32)
        rounded = np.clip(np.rint(rows / delta), grid.low, grid.high) * delta
        error = np.square(rounded - rows).sum(axis=1, dtype=np.float64)
        better = error < least
        best[better], least[better] = factor, error[better]
    return best
