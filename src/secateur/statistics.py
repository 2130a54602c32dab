"""What may be claimed from counts and samples: intervals, and differences on the same images.

Every interval is two-sided at 95 % unless an argument says otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats


class Interval(NamedTuple):
    """A value with its lower and upper bound."""

    value: float
    low: float
    high: float


def proportion(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion, all three in [0, 1] (Wilson 1927, eq. 4).

    Unlike the normal approximation it stays inside [0, 1] and keeps its coverage near the ends.

    Raises:
        ValueError: ``n`` is not positive or ``successes`` is outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, found {successes} of {n}")
    bounds = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high))


def paired_drop(
    reference: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_], confidence: float = 0.95
) -> Interval:
    """Accuracy of ``reference`` minus that of ``candidate`` on the same images, in [-1, 1].

    Only images on which the two disagree carry information. The interval is Agresti and Min's:
    Wald's on the four cells with 1/2 added to each (Agresti & Min 2005, section 3), which keeps its
    coverage when the disagreements are few.

    Args:
        reference: Shape (n,), True where the reference network was right.
        candidate: Shape (n,), the same images in the same order.
        confidence: Coverage of the two-sided interval, in (0, 1).

    Raises:
        ValueError: The shapes differ or are empty.
    """
    if reference.shape != candidate.shape or reference.ndim != 1 or reference.size == 0:
        raise ValueError(
            f"need two equal, non-empty vectors, found {reference.shape}, {candidate.shape}"
        )
    n = reference.size
    lost = int(np.sum(reference & ~candidate))
    won = int(np.sum(~reference & candidate))
    smoothed = n + 2
    center = (lost - won) / smoothed
    variance = ((lost + won + 1) - (lost - won) ** 2 / smoothed) / smoothed**2
    reach = float(stats.norm.ppf(0.5 + confidence / 2)) * variance**0.5
    return Interval((lost - won) / n, max(-1.0, center - reach), min(1.0, center + reach))


def mcnemar(reference: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_]) -> float:
    """Two-sided p-value of McNemar's exact test that two networks are equally often right.

    Args:
        reference: Shape (n,), True where the reference network was right.
        candidate: Shape (n,), the same images in the same order.
    """
    lost = int(np.sum(reference & ~candidate))
    won = int(np.sum(~reference & candidate))
    return 1.0 if lost + won == 0 else float(stats.binomtest(lost, lost + won).pvalue)


def spread(samples: npt.NDArray[np.floating]) -> Interval:
    """Median of ``samples`` with their 10th and 90th percentile.

    Raises:
        ValueError: There are no samples.
    """
    if samples.size == 0:
        raise ValueError("need at least one sample")
    low, median, high = np.percentile(samples, [10, 50, 90])
    return Interval(float(median), float(low), float(high))
