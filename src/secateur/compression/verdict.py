"""Tests whether the loss of accuracy is within the allowed loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from secateur import statistics
from secateur.statistics import Interval, paired_drop, proportion
from secateur.wording import counted

CONFIDENCE = 0.95
"""Confidence level of each one-sided bound."""

DISAGREEMENT = 0.45
"""Images on which exactly one of a network and its compressed form is correct, per error of the
network. In the cells of this project's study it is 0.35 to 0.66, about 0.43 in the median, and the
most where most accuracy is lost; a test checks that."""

Right = npt.NDArray[np.bool_]
Kind = Literal["meets", "misses", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """The result of the test on the test images.

    Attributes:
        kind: ``meets`` if the upper bound of the loss is at most ``max_drop``, ``misses`` if the
            lower bound is above it, else ``cannot tell``.
        drop: Reference minus result in percentage points, with one-sided 95 % bounds.
        max_drop: Allowed loss in percentage points.
        n: Number of test images.
        reason: Why the test is inconclusive, if not because of the number of images.
    """

    kind: Kind
    drop: Interval
    max_drop: float
    n: int
    reason: str = ""

    def __str__(self) -> str:
        """The verdict in one sentence."""
        value, low, high = self.drop
        allowed = f"the allowed loss of {counted(self.max_drop, 'point')}"
        if self.reason:
            return f"The test cannot tell: {self.reason}"
        subject = f"The result {self.kind}"
        if self.kind == "meets":
            bound = f"at most {high:.2f} points are lost"
            if high < 0:
                bound = f"at least {-high:.2f} points are gained"
        elif self.kind == "misses":
            bound = f"at least {low:.2f} points are lost"
        else:
            subject = "The test cannot tell whether the result meets"
            bound = f"between {low:.2f} and {high:.2f} points are lost"
        change = f"{value:.2f}" if value >= 0 else f"a gain of {-value:.2f}"
        return (
            f"{subject} {allowed}: {bound}, at {100 * CONFIDENCE:g} % confidence "
            f"on {self.n:,} test images (measured: {change})"
        )


def decide(reference: Right, candidate: Right, max_drop: float, classes: int) -> Verdict:
    """Test the loss of accuracy against the allowed loss, paired on the same images.

    This is a non-inferiority test by one-sided bounds of the paired drop; see
    :func:`secateur.statistics.no_worse`.

    Args:
        reference: Shape (n,), True where the given network is correct.
        candidate: Shape (n,), True where the result is correct, in the same order.
        max_drop: Allowed loss in percentage points.
        classes: Number of classes; the accuracy of chance is 1 / ``classes``.
    """
    drop = paired_drop(reference, candidate, 2 * CONFIDENCE - 1)
    points = Interval(*(100 * bound for bound in drop))
    n = len(reference)
    if guesses(reference, classes):
        accuracy = 100 * float(reference.mean())
        reason = (
            f"the given network guesses: its accuracy is {accuracy:.1f} % for {classes} classes"
        )
        return Verdict("cannot tell", points, max_drop, n, reason)
    kind: Kind = "cannot tell"
    if points.high <= max_drop:
        kind = "meets"
    elif points.low > max_drop:
        kind = "misses"
    return Verdict(kind, points, max_drop, n)


def guesses(right: Right, classes: int) -> bool:
    """Whether the accuracy is not significantly above chance."""
    return proportion(int(right.sum()), len(right)).low <= 1 / classes


def assurance(reference: Right, candidate: Right, max_drop: float, test_images: int) -> float:
    """Probability that the test passes, estimated from validation.

    The drop on test is modeled as normal around the drop on validation, with the variances of both.
    The test passes if its upper bound is at most ``max_drop``. This probability is called assurance
    (O'Hagan, Stevens & Campbell 2005, section 2).

    Args:
        reference: Correct images of the given network on validation, shape (n,).
        candidate: The same for the candidate, shape (n,).
        max_drop: Allowed loss in percentage points.
        test_images: Number of test images.
    """
    n = len(reference)
    drop = paired_drop(reference, candidate).value
    changed = (int((reference != candidate).sum()) + 1) / (n + 2)
    variance = changed - drop**2
    bound = float(stats.norm.ppf(CONFIDENCE)) * math.sqrt(variance / test_images)
    spread = math.sqrt(variance / n + variance / test_images)
    return float(stats.norm.cdf((max_drop / 100 - drop - bound) / spread))


def can_show(max_drop: float, test_images: int) -> bool:
    """Whether the test can pass, that is, passes if both networks agree on every image."""
    return test_images >= statistics.images_needed(max_drop / 100, 0.0, confidence=CONFIDENCE)


def images_needed(max_drop: float, accuracy: float, power: float = 0.8) -> int:
    """As :func:`secateur.statistics.images_needed` without a loss, rounded to two digits.

    Args:
        max_drop: Allowed loss in percentage points.
        accuracy: Accuracy of the given network, in [0, 1].
        power: Probability that the test passes, in (0, 1).
    """
    changed = DISAGREEMENT * (1 - accuracy)
    needed = statistics.images_needed(max_drop / 100, changed, confidence=CONFIDENCE, power=power)
    digits = 10 ** max(0, math.floor(math.log10(max(needed, 1))) - 1)
    return math.ceil(needed / digits) * digits
