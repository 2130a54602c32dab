from __future__ import annotations

import numpy as np
import pytest

from secateur.statistics import mcnemar, paired_drop, proportion, spread


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
