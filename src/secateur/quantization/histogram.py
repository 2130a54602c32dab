"""Histograms of tensors, and ranges chosen from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from secateur.quantization.affine import Affine, Grid, from_range

Range = tuple[float, float]
Floats = npt.NDArray[np.floating]

_SHARES = np.linspace(1.0, 0.1, 91)
"""Fractions of the range to try: from 1 to 0.1 in steps of 0.01."""


class Histogram:
    """Extremes and counts of values, added in parts, of any scale.

    Bins have equal width and are symmetric about 0. If a value is outside, bins double in width by
    merging pairs, so that values need not be stored.
    """

    HALF = 8192

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._reach = 0.0
        self._counts = np.zeros(2 * self.HALF, np.int64)

    def add(self, values: npt.NDArray[np.float32], counts: bool = True) -> None:
        """Add finite ``values`` of any shape; only their extremes if ``counts`` is False."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        if not counts:
            return
        self._widen(max(-self.low, self.high, float(np.finfo(np.float32).tiny)))
        reach = self._reach
        counted, _ = np.histogram(values, bins=2 * self.HALF, range=(-reach, reach))
        self._counts += counted

    def _widen(self, needed: float) -> None:
        if self._reach == 0.0:
            self._reach = needed
        while self._reach < needed:
            half = self.HALF // 2
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.pad(merged, half)
            self._reach *= 2

    @property
    def extremes(self) -> Range:
        """Lowest and highest value."""
        return self.low, self.high

    def central(self, share: float) -> Range:
        """The narrowest bounds, in bins, that exclude at most (1 - share) / 2 at each end."""
        left_out = int(self._counts.sum()) * (1 - share) / 2
        first = int(np.searchsorted(np.cumsum(self._counts), left_out, side="right"))
        # Counted from above, because a difference would be rounded and exclude one too many.
        from_above = np.searchsorted(np.cumsum(self._counts[::-1]), left_out, side="right")
        last = 2 * self.HALF - 1 - int(from_above)
        width = self._reach / self.HALF
        low, high = -self._reach + first * width, -self._reach + (last + 1) * width
        return max(low, self.low), min(high, self.high)

    def least_error(self, grid: Grid) -> Range:
        """The range with the smallest mean square error of rounding and clipping.

        Both ends are moved together, then the lower and the upper end separately.
        """
        centers, counts = self._filled()

        def error(bounds: Range) -> float:
            affine = from_range(*bounds, grid)
            return float(counts @ np.square(affine.dequantize(affine.quantize(centers)) - centers))

        low, high = min(self.low, 0.0), max(self.high, 0.0)
        low, high = min(((s * low, s * high) for s in _SHARES), key=error)
        low, high = min(((s * low, high) for s in _SHARES), key=error)
        return min(((low, s * high) for s in _SHARES), key=error)

    def least_divergence(self, grid: Grid) -> Range:
        """The range with the smallest Kullback-Leibler divergence.

        Clipped values count at the ends of the range; each level of the grid is spread evenly over
        its non-empty bins (Migacz 2017, "8-bit inference with TensorRT"). The bins at 0 are
        excluded: 0 is exact in every grid, and the zeros of a ReLU would dominate.
        """
        centers, counts = self._filled()
        beyond = np.abs(centers) > self._reach / self.HALF
        if beyond.any():
            centers, counts = centers[beyond], counts[beyond]

        def divergence(bounds: Range) -> float:
            inside = (centers >= bounds[0]) & (centers <= bounds[1])
            if not inside.any():
                return float("inf")
            kept = counts[inside].astype(np.float64)
            clipped = kept.copy()
            clipped[0] += counts[centers < bounds[0]].sum()
            clipped[-1] += counts[centers > bounds[1]].sum()
            coarse = _spread_over_levels(centers[inside], kept, from_range(*bounds, grid))
            return _divergence(clipped, coarse)

        low, high = min(self.low, 0.0), max(self.high, 0.0)
        return min(((s * low, s * high) for s in _SHARES), key=divergence)

    def _filled(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Centers and counts of non-empty bins."""
        filled = np.flatnonzero(self._counts)
        width = self._reach / self.HALF
        return np.asarray(-self._reach + (filled + 0.5) * width), self._counts[filled]


def _spread_over_levels(centers: Floats, counts: Floats, affine: Affine) -> Floats:
    levels = affine.quantize(centers) - affine.grid.low
    mass, bins = np.bincount(levels, counts), np.bincount(levels)
    return mass[levels] / bins[levels]


def _divergence(p: Floats, q: Floats) -> float:
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())
