from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.odd_networks import conv
from secateur.errors import NetworkError
from secateur.pruning.allocation import (
    channels_of,
    global_fractions,
    local_fractions,
    sensitivity_fractions,
)
from secateur.pruning.find import find_prunable

# Ten channels, thirty of which a second layer makes ten again, and twenty.
NETWORK = nn.Sequential(
    *(conv(1, 10), conv(10, 30, groups=10), nn.ReLU(), conv(30, 20), nn.ReLU(), conv(20, 1))
)
PRUNABLE = find_prunable(NETWORK, torch.zeros(1, 1, 4, 4))


def test_all_outputs_of_a_unit_count() -> None:
    assert channels_of(PRUNABLE, "0") == 10 + 30
    assert channels_of(PRUNABLE, "3") == 20


def test_local_is_the_same_everywhere() -> None:
    assert local_fractions(PRUNABLE, 0.3) == {"0": 0.3, "3": 0.3}


def ranked(first: float, second: float) -> dict[str, np.ndarray]:
    return {"0": first * np.arange(1.0, 11), "3": second * np.arange(1.0, 21)}


def test_global_takes_the_lowest_wherever_they_are() -> None:
    # Of 60 channels 15 go: units of the second group weigh one channel each, and are lower.
    assert global_fractions(PRUNABLE, ranked(100, 1), 0.25, False) == {"0": 0, "3": 15 / 20}
    # Units of the first weigh four each; the fourth is needed for the last three.
    assert global_fractions(PRUNABLE, ranked(1, 100), 0.25, False) == {"0": 4 / 10, "3": 0}


def test_global_may_compare_to_the_mean_of_each_group() -> None:
    raw = global_fractions(PRUNABLE, ranked(1, 100), 0.5, False)
    fair = global_fractions(PRUNABLE, ranked(1, 100), 0.5, True)
    assert raw["3"] < 0.2
    assert 0.4 < fair["3"] < 0.6


def test_a_tenth_of_each_group_stays_and_infinity_always() -> None:
    assert global_fractions(PRUNABLE, ranked(1, 1), 0.99, True) == {"0": 0.9, "3": 0.9}
    scores = ranked(1, 1) | {"0": np.full(10, np.inf)}
    assert global_fractions(PRUNABLE, scores, 0.99, True) == {"0": 0, "3": 0.9}


CURVES = {"0": [(0.5, 1.0), (0.9, 5.0)], "3": [(0.5, 4.0), (0.9, 5.0)]}


def test_sensitivity_gives_each_group_what_one_loss_allows() -> None:
    # At a loss of 1: 0.5 of 40 channels, 0.125 of 20: 22.5 of 60.
    found = sensitivity_fractions(PRUNABLE, CURVES, 22.5 / 60)
    assert found == pytest.approx({"0": 0.5, "3": 0.125})


def test_curves_may_fall_be_unsorted_and_end() -> None:
    curves = {"0": [(0.9, 3.0), (0.1, 2.0), (0.5, 1.0)], "3": [(0.5, 0.0)]}
    # Made rising: 2 at 0.1, 2 at 0.5, 3 at 0.9. At a loss of 2: half of each.
    assert sensitivity_fractions(PRUNABLE, curves, 0.5) == pytest.approx({"0": 0.5, "3": 0.5})
    assert sensitivity_fractions(PRUNABLE, curves, 0.99) == pytest.approx({"0": 0.9, "3": 0.5})


@settings(max_examples=30, deadline=None)
@given(
    losses=st.lists(st.floats(0, 10), min_size=6, max_size=6),
    fraction=st.floats(0, 0.8),
)
def test_sensitivity_removes_what_is_asked(losses, fraction) -> None:
    points = [(0.3, losses[:2]), (0.6, losses[2:4]), (0.9, losses[4:])]
    curves = {name: [(f, pair[i]) for f, pair in points] for i, name in enumerate(("0", "3"))}
    found = sensitivity_fractions(PRUNABLE, curves, fraction)
    share = (40 * found["0"] + 20 * found["3"]) / 60
    assert share >= fraction - 1e-9  # more only where a curve is flat
    assert all(0 <= part <= 0.9 for part in found.values())


def test_a_group_without_a_curve_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"no sensitivity curve \(3\); scan this layer first"):
        sensitivity_fractions(PRUNABLE, {"0": [(0.5, 1.0)]}, 0.5)
