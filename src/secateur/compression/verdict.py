"""Whether a network meets the allowed loss of accuracy: one test, one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from secateur import statistics
from secateur.statistics import Interval, paired_drop, proportion

CONFIDENCE = 0.95
"""Of each one-sided bound."""

Right = npt.NDArray[np.bool_]
Kind = Literal["meets", "misses", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """The result of the test on the test images.

    Attributes:
        kind: ``meets`` where the upper bound of the loss is within what is allowed, ``misses``
            where the lower bound is above it, else ``cannot tell``.
        drop: Reference minus result, in points, with its one-sided 95 % bounds.
        max_drop: What is allowed, in points.
        n: Test images.
        reason: Why nothing can be told, where it is not for the number of images.
    """

    kind: Kind
    drop: Interval
    max_drop: float
    n: int
    reason: str = ""

    def __str__(self) -> str:
        """The verdict in one sentence."""
        value, low, high = self.drop
        allowed = f"the allowed loss of {self.max_drop:g} points"
        if self.reason:
            return f"cannot tell: {self.reason}"
        if self.kind == "meets":
            bound = f"at most {high:.2f} points are lost"
        elif self.kind == "misses":
            bound = f"at least {low:.2f} points are lost"
        else:
            bound = f"between {low:.2f} and {high:.2f} points are lost"
        return (
            f"{self.kind} {allowed}: {bound}, at {100 * CONFIDENCE:g} % confidence "
            f"on {self.n:,} test images (measured: {value:.2f})"
        )


def decide(reference: Right, candidate: Right, max_drop: float, classes: int) -> Verdict:
    """Test a result against the allowed loss, on the same images as its reference.

    A test of non-inferiority by one-sided bounds of the paired drop, see
    :func:`secateur.statistics.no_worse`.

    Args:
        reference: Shape (n,), True where the given network was right.
        candidate: Shape (n,), the same images in the same order.
        max_drop: In percentage points.
        classes: Of the data set; a network that guesses is right on one of as many.
    """
    drop = paired_drop(reference, candidate, 2 * CONFIDENCE - 1)
    points = Interval(*(100 * bound for bound in drop))
    n = len(reference)
    if guesses(reference, classes):
        accuracy = 100 * float(reference.mean())
        reason = f"the given network guesses, {accuracy:.1f} % of {classes} classes are right"
        return Verdict("cannot tell", points, max_drop, n, reason)
    kind: Kind = "cannot tell"
    if points.high <= max_drop:
        kind = "meets"
    elif points.low > max_drop:
        kind = "misses"
    return Verdict(kind, points, max_drop, n)


def guesses(right: Right, classes: int) -> bool:
    """Whether a network is not shown to be right more often than by chance."""
    return proportion(int(right.sum()), len(right)).low <= 1 / classes


def assurance(reference: Right, candidate: Right, max_drop: float, test_images: int) -> float:
    """Probability that the test will show the allowed loss to be met, from validation.

    The drop on test is drawn around that on validation, with the variance of both; the test then
    needs its upper bound within ``max_drop``. The probability of success under what is known
    beforehand is called assurance (O'Hagan, Stevens & Campbell 2005, section 2).

    Args:
        reference: Shape (n,), of validation.
        candidate: Shape (n,).
        max_drop: In percentage points.
        test_images: How many the test has.
    """
    n = len(reference)
    drop = paired_drop(reference, candidate).value
    changed = (int((reference != candidate).sum()) + 1) / (n + 2)
    variance = changed - drop**2
    bound = float(stats.norm.ppf(CONFIDENCE)) * math.sqrt(variance / test_images)
    spread = math.sqrt(variance / n + variance / test_images)
    return float(stats.norm.cdf((max_drop / 100 - drop - bound) / spread))


def can_show(max_drop: float, test_images: int) -> bool:
    """Whether the test can be met at all: where reference and result agree on every image."""
    return test_images >= statistics.images_needed(max_drop / 100, 0.0, confidence=CONFIDENCE)


def images_needed(max_drop: float, changed: float = 0.02, power: float = 0.8) -> int:
    """As :func:`secateur.statistics.images_needed` where nothing is lost, in two digits.

    Args:
        max_drop: In percentage points.
        changed: Share of images on which the two networks differ in being right.
        power: In (0, 1).
    """
    needed = statistics.images_needed(max_drop / 100, changed, confidence=CONFIDENCE, power=power)
    digits = 10 ** max(0, math.floor(math.log10(max(needed, 1))) - 1)
    return math.ceil(needed / digits) * digits
