"""Intervals and tests for counts, samples, and paired differences.

Intervals are two-sided at 95 % by default.
"""

from __future__ import annotations

import bisect
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
        reference: Shape (n,), True where the reference network is correct.
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
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * variance**0.5
    return Interval((lost - won) / n, max(-1.0, center - half), min(1.0, center + half))


def mcnemar(reference: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_]) -> float:
    """Two-sided p-value of McNemar's exact test of equal accuracy.

    Args:
        reference: Shape (n,), True where the reference network is correct.
        candidate: Shape (n,), the same images in the same order.
    """
    lost = int(np.sum(reference & ~candidate))
    won = int(np.sum(~reference & candidate))
    return 1.0 if lost + won == 0 else float(stats.binomtest(lost, lost + won).pvalue)


def bootstrapped_drop(
    reference: npt.NDArray[np.bool_],
    candidate: npt.NDArray[np.bool_],
    confidence: float = 0.95,
    draws: int = 10_000,
) -> Interval:
    """:func:`paired_drop` with a percentile bootstrap interval over images.

    It makes no assumption on the distribution and verifies the formula. Images are resampled in
    pairs; only the counts of the four cells matter, so one multinomial draws them (Efron &
    Tibshirani 1993, section 13.3). The seed is fixed.

    Raises:
        ValueError: The shapes differ or are empty.
    """
    value = paired_drop(reference, candidate).value
    n = reference.size
    lost, won = np.sum(reference & ~candidate), np.sum(~reference & candidate)
    cells = np.random.default_rng(0).multinomial(
        n, [lost / n, won / n, (n - lost - won) / n], size=draws
    )
    ends = [50 - 50 * confidence, 50 + 50 * confidence]
    low, high = np.percentile((cells[:, 0] - cells[:, 1]) / n, ends)
    return Interval(value, float(low), float(high))


class Verdict(NamedTuple):
    """Result of a non-inferiority test.

    Attributes:
        holds: Whether the bound is within the margin.
        bound: One-sided upper confidence bound of the loss, a fraction in [-1, 1].
        margin: Allowed loss, a fraction.
    """

    holds: bool
    bound: float
    margin: float


def no_worse(
    reference: npt.NDArray[np.bool_],
    candidate: npt.NDArray[np.bool_],
    margin: float,
    confidence: float = 0.95,
) -> Verdict:
    """Test that ``candidate`` loses no more than ``margin`` of ``reference``'s accuracy.

    In this non-inferiority test, the one-sided upper bound of the paired drop (the upper end of the
    two-sided interval at twice the error) must be within the margin. A difference that is not
    significant is not sufficient.

    Args:
        reference: Shape (n,), True where the reference network is correct.
        candidate: Shape (n,), the same images in the same order.
        margin: Allowed loss in [0, 1]; 0.003 is 0.3 percentage points.
        confidence: One-sided confidence, in (0.5, 1).
    """
    bound = paired_drop(reference, candidate, 2 * confidence - 1).high
    return Verdict(bound <= margin, bound, margin)


def images_needed(
    margin: float,
    disagreement: float,
    drop: float = 0.0,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int:
    """Number of images that :func:`no_worse` needs to show a loss within ``margin``.

    The smallest n at which the expected upper bound of the paired drop, plus the normal quantile of
    ``power`` times the standard error of the drop, is within the margin:

        drop + z_confidence sqrt(n psi + 1) / (n + 2) + z_power sqrt((psi - drop^2) / n) <= margin

    with psi the disagreement. This is the sample size of a non-inferiority test of paired
    proportions (Lu & Bean 1995; Nam 1997) for the interval of Agresti & Min (2005). Without any
    disagreement, n = z / margin - 2 images are still needed.

    Args:
        margin: Allowed loss, a fraction in (0, 1).
        disagreement: Fraction of images on which exactly one of the two networks is correct.
        drop: True loss of accuracy, a fraction below ``margin`` and at most ``disagreement``.
        confidence: One-sided confidence, in (0.5, 1).
        power: Probability that the test passes, in [0.5, 1).

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> images_needed(0.005, disagreement=0.04)
        9906
        >>> images_needed(0.005, disagreement=0.0)
        327
    """
    if not (0 < margin < 1 and 0 <= abs(drop) <= disagreement <= 1 and drop < margin):
        raise ValueError(
            f"need drop < margin, |drop| <= disagreement: {margin, disagreement, drop}"
        )
    z_bound, z_power = (float(stats.norm.ppf(level)) for level in (confidence, power))

    def shows(n: int) -> bool:
        bound = drop + z_bound * (n * disagreement + 1) ** 0.5 / (n + 2)
        return bound + z_power * ((disagreement - drop**2) / n) ** 0.5 <= margin

    high = 1
    while not shows(high):
        high *= 2
    return bisect.bisect_left(range(high), True, lo=1, key=shows)


def ratio_of_medians(
    slow: npt.NDArray[np.floating], fast: npt.NDArray[np.floating], draws: int = 2000
) -> Interval:
    """Speed-up of ``fast`` over ``slow``, with its 95 % bootstrap interval.

    Turns are resampled in pairs, so that slow periods of the machine affect both. The seed is
    fixed.

    Args:
        slow: Times of consecutive turns, shape (n,).
        fast: Times of the same turns, shape (n,).
        draws: Bootstrap samples.

    Raises:
        ValueError: The shapes differ or are empty.
    """
    if slow.shape != fast.shape or slow.ndim != 1 or slow.size == 0:
        raise ValueError(f"need two equal, non-empty vectors, found {slow.shape}, {fast.shape}")
    turns = np.random.default_rng(0).integers(slow.size, size=(draws, slow.size))
    ratios = np.median(slow[turns], axis=1) / np.median(fast[turns], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(float(np.median(slow) / np.median(fast)), float(low), float(high))


QUIET = 0.25
"""Spread, (p90 - p10) / median, above which a machine is noisy."""


def noise(samples: npt.NDArray[np.floating]) -> float:
    """Relative spread of timings: (p90 - p10) / median."""
    median, low, high = spread(samples)
    return (high - low) / median


def mean(samples: npt.NDArray[np.floating], confidence: float = 0.95) -> Interval:
    """Mean of independent ``samples`` with its Student interval.

    Its coverage is accurate for thousands of samples, also of skewed losses.

    Raises:
        ValueError: There are fewer than two samples.
    """
    if samples.size < 2:
        raise ValueError(f"need at least two samples, found {samples.size}")
    center = float(samples.mean())
    half = float(stats.t.ppf(0.5 + confidence / 2, samples.size - 1) * stats.sem(samples))
    return Interval(center, center - half, center + half)


def spread(samples: npt.NDArray[np.floating]) -> Interval:
    """Median of ``samples`` with their 10th and 90th percentile.

    Raises:
        ValueError: There are no samples.
    """
    if samples.size == 0:
        raise ValueError("need at least one sample")
    low, median, high = np.percentile(samples, [10, 50, 90])
    return Interval(float(median), float(low), float(high))


def across_seeds(right: npt.NDArray[np.bool_], confidence: float = 0.95) -> Interval:
    """Mean accuracy over seeds on the same images, with an interval over seeds *and* images.

    Seeds and images are crossed random effects: every seed classifies every image. With y the
    correct answers, S seeds and n images, the variance of the mean is estimated by

        var_i(mean_s y) / n  +  var_s(mean_i y) / S,

    the components of images and of seeds (Owen 2007, *The pigeonhole bootstrap*, section 2). The
    residual variance is in both components, so that the interval is conservative, as Owen's
    bootstrap is. Its half-width is the root of the sum times Student's t with Satterthwaite's
    degrees of freedom (1946), from n - 1 and S - 1. In simulations its coverage is 94 to 97 % if
    seeds differ by about as much as images explain, and about 90 % if two or three seeds differ by
    several times that.

    Args:
        right: Shape (S, n), True where the network of that seed is correct on that image.
        confidence: Coverage of the two-sided interval, in (0, 1).

    Returns:
        All three in [0, 1]. For one seed, or without variance, Wilson's interval of n images.

    Raises:
        ValueError: Not two axes, or one is empty.
    """
    _check_crossed(right)
    if len(right) == 1 or _all_alike(right):
        return proportion(int(right[0].sum()), right.shape[1], confidence)
    return _crossed(right.astype(np.float64), confidence, (0.0, 1.0))


def drop_across_seeds(
    reference: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_], confidence: float = 0.95
) -> Interval:
    """Mean accuracy of ``reference`` minus that of ``candidate``, over seeds and images.

    As :func:`across_seeds`, for the differences -1, 0 and 1 of each seed on each image.

    Args:
        reference: Shape (S, n), True where the reference network of that seed is correct.
        candidate: Shape (S, n), the same seeds and images in the same order.
        confidence: Coverage of the two-sided interval, in (0, 1).

    Returns:
        All three in [-1, 1]. For one seed, or without variance, as :func:`paired_drop`.

    Raises:
        ValueError: The shapes differ, are not two axes, or one is empty.
    """
    _check_crossed(reference)
    if reference.shape != candidate.shape:
        raise ValueError(f"need equal shapes, found {reference.shape}, {candidate.shape}")
    differences = reference.astype(np.float64) - candidate
    if len(reference) == 1 or _all_alike(differences):
        return paired_drop(reference[0], candidate[0], confidence)
    return _crossed(differences, confidence, (-1.0, 1.0))


def rates_across_seeds(
    accuracies: npt.NDArray[np.floating], n: int, confidence: float = 0.95
) -> Interval:
    """Mean of accuracies on the same ``n`` images, from rates only.

    As :func:`across_seeds`, with the largest possible variance of images, p (1 - p) / n, that of
    equal decisions of all seeds.

    Args:
        accuracies: Accuracies, shape (S,), in [0, 1].
        n: Number of images.
        confidence: Coverage of the two-sided interval, in (0, 1).

    Raises:
        ValueError: There are no accuracies, or ``n`` is not positive.
    """
    if accuracies.ndim != 1 or accuracies.size == 0 or n < 1:
        raise ValueError(f"need rates and n >= 1, found shape {accuracies.shape}, n = {n}")
    mean = float(accuracies.mean())
    if accuracies.size == 1 or mean in (0.0, 1.0):
        return proportion(round(mean * n), n, confidence)
    of_seeds = float(accuracies.var(ddof=1)) / accuracies.size
    parts = ((mean * (1 - mean) / n, max(1, n - 1)), (of_seeds, accuracies.size - 1))
    return _around(mean, parts, confidence, (0.0, 1.0))


def _check_crossed(values: npt.NDArray[np.bool_]) -> None:
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"need seeds x images, neither empty, found {values.shape}")


def _all_alike(values: npt.NDArray[np.generic]) -> bool:
    return bool(np.all(values == values.flat[0]))


def _crossed(
    values: npt.NDArray[np.float64], confidence: float, limits: tuple[float, float]
) -> Interval:
    seeds, n = values.shape
    of_images = float(values.mean(axis=0).var(ddof=1)) / n if n > 1 else 0.0
    of_seeds = float(values.mean(axis=1).var(ddof=1)) / seeds
    parts = ((of_images, max(1, n - 1)), (of_seeds, seeds - 1))
    return _around(float(values.mean()), parts, confidence, limits)


def _around(
    mean: float,
    parts: tuple[tuple[float, int], ...],
    confidence: float,
    limits: tuple[float, float],
) -> Interval:
    """The mean with a t interval from a sum of variances and their degrees of freedom."""
    variance = sum(part for part, _ in parts)
    degrees = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * variance**0.5
    return Interval(mean, max(limits[0], mean - half), min(limits[1], mean + half))
