"""One test decides one sentence; power and assurance agree with simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from secateur.compression.candidate import Candidate
from secateur.compression.final import speed
from secateur.compression.verdict import (
    DISAGREEMENT,
    assurance,
    can_show,
    decide,
    guesses,
    images_needed,
)
from secateur.recipe import Quantize

CELLS = Path(__file__).parents[2] / "results" / "study" / "cells"


def pair(n: int, both: int, lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    reference = np.zeros(n, bool)
    candidate = np.zeros(n, bool)
    reference[: both + lost] = True
    candidate[:both] = True
    candidate[both + lost : both + lost + won] = True
    return reference, candidate


@pytest.mark.parametrize(
    ("lost", "won", "kind"), [(10, 10, "meets"), (90, 10, "misses"), (30, 15, "cannot tell")]
)
def test_kinds(lost: int, won: int, kind: str) -> None:
    verdict = decide(*pair(2000, 1600, lost, won), max_drop=1.0, classes=10)
    assert verdict.kind == kind
    assert str(verdict).split(" ", 2)[2].startswith(kind)
    assert "2,000 test images" in str(verdict)
    assert (verdict.drop.high <= 1.0) == (kind == "meets")
    assert (verdict.drop.low > 1.0) == (kind == "misses")


def test_a_gain_is_called_one() -> None:
    verdict = str(decide(*pair(2000, 1600, 10, 60), max_drop=1.0, classes=10))
    assert "points are gained" in verdict
    assert "a gain of 2.50" in verdict
    assert "-" not in verdict


def test_no_praise_at_chance_level() -> None:
    verdict = decide(*pair(1000, 100, 2, 2), max_drop=1.0, classes=10)
    assert verdict.kind == "cannot tell"
    assert "guesses: its accuracy is 10.2 % for 10 classes" in str(verdict)
    assert "points are lost" not in str(verdict)


def test_guesses() -> None:
    right = np.zeros(1000, bool)
    right[:110] = True
    assert guesses(right, 10)
    right[:140] = True
    assert not guesses(right, 10)


def test_assurance_is_the_share_of_tests_that_are_met() -> None:
    n, random = 2000, np.random.default_rng(0)
    reference, candidate = pair(n, 1650, 30, 26)
    validation = np.array([30, 26, n - 56]) / n
    met = 0
    for _ in range(300):  # what may be true, given validation, and the test's draw from it
        truth = random.multinomial(n, validation) / n
        lost, won, _ = random.multinomial(n, truth)
        met += decide(*pair(n, 1650, lost, won), max_drop=1.0, classes=10).kind == "meets"
    assert assurance(reference, candidate, 1.0, n) == pytest.approx(met / 300, abs=0.08)


def test_assurance_grows_with_what_is_allowed() -> None:
    both = pair(1000, 800, 20, 10)
    values = [assurance(*both, max_drop, 1000) for max_drop in (0.5, 1.0, 2.0, 4.0)]
    assert values == sorted(values)
    assert values[0] < 0.1
    assert values[-1] > 0.9


def test_few_images_cannot_show_a_small_loss() -> None:
    assert not can_show(0.5, 200)
    assert can_show(0.5, 1000)
    assert images_needed(0.5, accuracy=0.9) == 12_000  # 11,043, rounded up


def test_the_assumed_disagreement_is_that_of_the_study() -> None:
    ratios = []
    for file in CELLS.glob("*/*.safetensors"):
        right = load_file(file)
        if {"reference", "quantized"} <= set(right):
            errors = 1 - right["reference"].mean()
            ratios.append((right["reference"] != right["quantized"]).mean() / errors)
    assert len(ratios) >= 5
    assert min(ratios) > 0.34
    assert max(ratios) < 0.67
    assert np.median(ratios) == pytest.approx(DISAGREEMENT, abs=0.05)


def test_needed_images_give_that_power() -> None:
    random, max_drop = np.random.default_rng(0), 1.0
    n = images_needed(max_drop, accuracy=1 - 0.02 / DISAGREEMENT)
    met = 0
    for _ in range(400):
        lost, won, _ = random.multinomial(n, [0.01, 0.01, 0.98])
        met += decide(*pair(n, n // 2, lost, won), max_drop, classes=10).kind == "meets"
    assert met / 400 == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (2.54, "2.5 times faster than PyTorch"),
        (1.04, "as fast as PyTorch"),
        (0.97, "as fast as PyTorch"),
        (0.5, "2.0 times slower than PyTorch"),
    ],
)
def test_speed_in_words(ratio: float, words: str) -> None:
    assert speed(ratio, "PyTorch") == words


def test_candidates_that_differ_in_their_ranges_have_different_names() -> None:
    names = [Candidate(quantize=Quantize(method=method)).name for method in ("minmax", "auto")]
    assert names == ["int8", "int8, auto ranges"]
