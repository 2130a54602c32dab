from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from secateur.statistics import (
    QUIET,
    across_seeds,
    bootstrapped_drop,
    drop_across_seeds,
    images_needed,
    mcnemar,
    no_worse,
    noise,
    paired_drop,
    proportion,
    rates_across_seeds,
    ratio_of_medians,
    spread,
)


def test_wilson_interval_by_hand() -> None:
    # Wilson 1927 with z = 1.959964: center (p + z2/2n) / (1 + z2/n), worked out for 9 of 10.
    interval = proportion(9, 10)
    assert interval.value == 0.9
    assert interval.low == pytest.approx(0.595850, abs=1e-6)
    assert interval.high == pytest.approx(0.982124, abs=1e-6)


def test_wilson_stays_inside_and_refuses_nonsense() -> None:
    assert proportion(0, 5).low == 0
    assert proportion(5, 5).high == 1
    for successes, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="successes"):
            proportion(successes, n)


def test_paired_drop_counts_disagreements_only() -> None:
    reference = np.array([True] * 6 + [False] * 4)
    candidate = np.array([True] * 3 + [False] * 3 + [True] + [False] * 3)
    drop = paired_drop(reference, candidate)
    assert drop.value == pytest.approx((3 - 1) / 10)
    # Agresti & Min: n* = 12, (3-1)/12 +- z sqrt((3.5+1.5) - 4/12)/12.
    reach = 1.959964 * (5 - 4 / 12) ** 0.5 / 12
    assert drop.low == pytest.approx(2 / 12 - reach, abs=1e-6)
    assert drop.high == pytest.approx(2 / 12 + reach, abs=1e-6)


def test_paired_drop_covers_the_truth() -> None:
    """Of 2,000 simulated test sets, 95 % of the intervals hold the true difference."""
    generator = np.random.default_rng(0)
    cell = generator.choice(3, p=[0.03, 0.02, 0.95], size=(2000, 1000))
    hits = 0
    for row in cell:
        reference, candidate = row != 1, row != 0
        drop = paired_drop(reference, candidate)
        hits += drop.low <= 0.01 <= drop.high
    assert 0.935 <= hits / 2000 <= 0.965


def test_paired_drop_refuses_different_images() -> None:
    with pytest.raises(ValueError, match="equal"):
        paired_drop(np.ones(3, bool), np.ones(4, bool))


def test_mcnemar_by_hand() -> None:
    reference = np.array([True] * 5 + [False])
    candidate = np.array([False] * 5 + [True])
    # 5 against 1: two-sided binomial, 2 * (C(6,0) + C(6,1)) / 2**6.
    assert mcnemar(reference, candidate) == pytest.approx(2 * 7 / 64)
    assert mcnemar(reference, reference) == 1


def test_spread_is_median_and_outer_deciles() -> None:
    assert spread(np.arange(101.0)) == (50, 10, 90)
    with pytest.raises(ValueError, match="sample"):
        spread(np.array([]))


def _rights(lost: int, won: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two networks that differ on ``lost`` and ``won`` of ``n`` images, else both right."""
    reference, candidate = np.ones(n, bool), np.ones(n, bool)
    candidate[:lost] = False
    reference[lost : lost + won] = False
    return reference, candidate


def test_bootstrapped_drop_is_scipys() -> None:
    reference, candidate = _rights(60, 30, 2000)
    ours = bootstrapped_drop(reference, candidate)
    theirs = stats.bootstrap(
        (reference.astype(float), candidate.astype(float)),
        lambda r, c, axis: r.mean(axis) - c.mean(axis),
        paired=True, method="percentile", n_resamples=5000, rng=1,
    ).confidence_interval  # fmt: skip
    assert ours.value == pytest.approx(0.015)
    assert (ours.low, ours.high) == pytest.approx(
        (theirs.low, theirs.high), abs=6e-4
    )  # an image is 5e-4
    assert (ours.low, ours.high) == pytest.approx(paired_drop(reference, candidate)[1:], abs=6e-4)


def test_no_worse_is_decided_by_the_one_sided_bound() -> None:
    reference, candidate = _rights(60, 50, 10_000)  # 0.1 points lost, standard error 0.105
    verdict = no_worse(reference, candidate, 0.003)
    assert verdict.holds
    z = stats.norm.ppf(0.95)  # one-sided
    wald = 0.001 + z * (110 / 10_000**2) ** 0.5
    assert verdict.bound == pytest.approx(wald, abs=2e-5)
    assert not no_worse(reference, candidate, 0.0027).holds
    # Nothing is shown by a few images, even where both are right on all of them.
    assert not no_worse(*_rights(0, 0, 100), margin=0.003).holds


def test_no_worse_errs_as_often_as_it_says() -> None:
    """Where the margin itself is lost, five in a hundred test sets pass."""
    generator = np.random.default_rng(0)
    cell = generator.choice(3, p=[0.03, 0.02, 0.95], size=(2000, 1000))
    passed = sum(no_worse(row != 1, row != 0, 0.01).holds for row in cell)
    assert 0.035 <= passed / 2000 <= 0.065


def test_ratio_of_medians_pairs_turns() -> None:
    drift = 1 + np.arange(200) / 100  # the machine slows down threefold meanwhile
    ratio = ratio_of_medians(3 * drift, 1.5 * drift)
    assert ratio == pytest.approx((2, 2, 2))
    generator = np.random.default_rng(0)
    slow, fast = generator.lognormal(1, 0.1, 400), generator.lognormal(0, 0.1, 400)
    ours = ratio_of_medians(slow, fast)
    theirs = stats.bootstrap(
        (slow, fast), lambda s, f, axis: np.median(s, axis) / np.median(f, axis),
        paired=True, method="percentile", n_resamples=3000, rng=1,
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.01)
    with pytest.raises(ValueError, match="equal"):
        ratio_of_medians(slow, fast[1:])


def test_noise_is_relative() -> None:
    quiet, restless = np.array([10.0] * 90 + [10.5] * 10), np.array([10.0] * 50 + [14.0] * 50)
    assert noise(quiet) < QUIET < noise(restless)
    assert noise(10 * restless) == pytest.approx(noise(restless))


def _crossed(
    generator: np.random.Generator, seeds: int, n: int, of_seeds: float, lift: float
) -> np.ndarray:
    """Right answers where each image is as hard for every seed, and each seed as good on all."""
    skill = of_seeds * generator.normal(size=(seeds, 1)) + generator.normal(size=(1, n))
    return skill + 0.3 * generator.normal(size=(seeds, n)) + lift > 0


@pytest.mark.parametrize("of_seeds", [0.0, 0.05, 0.1])
def test_interval_over_seeds_and_images_covers_the_truth(of_seeds: float) -> None:
    generator = np.random.default_rng(0)
    truth = stats.norm.cdf(1.2 / (1 + 0.3**2 + of_seeds**2) ** 0.5)
    hits = 0
    for _ in range(1000):
        low, high = across_seeds(_crossed(generator, 5, 1000, of_seeds, 1.2))[1:]
        hits += low <= truth <= high
    assert 930 <= hits <= 970


def test_interval_of_a_drop_covers_the_truth() -> None:
    """Two networks of one seed share its images; what pruning costs differs from seed to seed."""
    generator = np.random.default_rng(1)
    spreads = (1 + 0.1**2) ** 0.5, (1 + 0.1**2 + 0.1**2) ** 0.5
    truth = stats.norm.cdf(1.2 / spreads[0]) - stats.norm.cdf(1.0 / spreads[1])
    hits = 0
    for _ in range(1000):
        skill = 0.1 * generator.normal(size=(6, 1)) + generator.normal(size=(1, 1000))
        cost = 0.2 + 0.1 * generator.normal(size=(6, 1))
        low, high = drop_across_seeds(skill + 1.2 > 0, skill + 1.2 - cost > 0)[1:]
        hits += low <= truth <= high
    assert 930 <= hits <= 970


def test_one_seed_has_the_interval_of_its_images() -> None:
    right = np.random.default_rng(2).random((1, 300)) < 0.9
    other = np.random.default_rng(3).random((1, 300)) < 0.8
    assert across_seeds(right) == proportion(int(right.sum()), 300)
    assert drop_across_seeds(right, other) == paired_drop(right[0], other[0])
    assert rates_across_seeds(np.array([0.9]), 300) == proportion(270, 300)
    bounds = stats.binomtest(int(right.sum()), 300).proportion_ci(0.95, "wilson")
    assert across_seeds(right)[1:] == pytest.approx((bounds.low, bounds.high))


def test_images_that_are_all_alike_leave_the_t_interval_of_the_seeds() -> None:
    right = np.array([True, True, False, True])[:, None].repeat(50, axis=1)
    values = right.mean(axis=1)
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert across_seeds(right) == pytest.approx((0.75, max(0, low), min(1, high)))


def test_seeds_that_are_all_alike_leave_the_t_interval_of_the_images() -> None:
    row = np.random.default_rng(4).random(400) < 0.9
    right = np.stack([row] * 3)
    expected = stats.t.interval(0.95, 399, row.mean(), stats.sem(row))
    assert across_seeds(right)[1:] == pytest.approx(expected, abs=1e-12)
    # Rates alone cannot know that, and assume it: n against n - 1 is all that differs.
    assert rates_across_seeds(right.mean(axis=1), 400)[1:] == pytest.approx(expected, abs=1e-4)


def test_interval_over_seeds_by_hand() -> None:
    right = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], bool)
    # Images: means 1, .5, 0, 1, variance 11/48; seeds: .75 and .5, variance 1/32.
    parts = 11 / 48 / 4, 1 / 32 / 2
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 1)
    reach = stats.t.ppf(0.975, degrees) * sum(parts) ** 0.5
    assert across_seeds(right) == pytest.approx((0.625, max(0, 0.625 - reach), 1.0))
    narrow = across_seeds(right, confidence=0.5)
    reach = stats.t.ppf(0.75, degrees) * sum(parts) ** 0.5
    assert narrow == pytest.approx((0.625, 0.625 - reach, 0.625 + reach))


def test_what_never_varies_is_not_certain() -> None:
    right = np.ones((3, 100), bool)
    assert across_seeds(right) == proportion(100, 100)
    assert drop_across_seeds(right, right) == paired_drop(right[0], right[0])
    assert rates_across_seeds(np.ones(3), 100) == proportion(100, 100)


def test_intervals_over_seeds_refuse_other_shapes() -> None:
    for wrong in (np.ones(3, bool), np.ones((0, 3), bool), np.ones((2, 0), bool)):
        with pytest.raises(ValueError, match="seeds x images"):
            across_seeds(wrong)
    with pytest.raises(ValueError, match="equal shapes"):
        drop_across_seeds(np.ones((2, 3), bool), np.ones((2, 4), bool))
    with pytest.raises(ValueError, match="rates"):
        rates_across_seeds(np.array([]), 10)


@pytest.mark.parametrize(
    ("margin", "disagreement", "drop"),
    [(0.005, 0.04, 0.0), (0.01, 0.05, 0.004), (0.02, 0.03, -0.005), (0.05, 0.2, 0.0)],
)
def test_that_many_images_show_the_margin_with_the_power(
    margin: float, disagreement: float, drop: float
) -> None:
    n = images_needed(margin, disagreement, drop)
    cells = [(disagreement + drop) / 2, (disagreement - drop) / 2, 1 - disagreement]

    def share_shown(images: int) -> float:
        holds = 0
        for lost, won, _ in np.random.default_rng(1).multinomial(images, cells, size=400):
            reference = np.zeros(images, bool)
            candidate = reference.copy()
            reference[:lost] = True
            candidate[lost : lost + won] = True
            holds += no_worse(reference, candidate, margin).holds
        return holds / 400

    assert share_shown(n) == pytest.approx(0.8, abs=0.07)
    assert share_shown(n // 2) < 0.68


def test_even_equal_networks_need_images() -> None:
    n = images_needed(0.005, 0.0)
    same = np.ones(n, bool)
    assert no_worse(same, same, 0.005).holds
    assert not no_worse(same[1:], same[1:], 0.005).holds
    with pytest.raises(ValueError, match="drop < margin"):
        images_needed(0.01, 0.1, 0.02)
