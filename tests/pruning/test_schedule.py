from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.pruning.schedule import Schedule, fraction_after

FRACTIONS = st.floats(0, 0.99)
ROUNDS = st.integers(1, 12)


def test_three_halvings() -> None:
    assert [fraction_after(k, 3, 0.875) for k in range(4)] == pytest.approx([0, 0.5, 0.75, 0.875])


@given(ROUNDS, FRACTIONS)
def test_each_round_removes_the_same_share_and_the_last_meets_the_target(
    rounds: int, target: float
) -> None:
    left = [1 - fraction_after(k, rounds, target) for k in range(rounds + 1)]
    shares = [after / before for before, after in pairwise(left)]
    assert shares == pytest.approx([shares[0]] * rounds, rel=1e-9)
    assert left[0] == 1
    assert fraction_after(rounds, rounds, target) == target  # exactly


def test_cubic_removes_most_early_and_one_shot_all_at_once() -> None:
    # 0.8 times 1 - (2/3)^3, 1 - (1/3)^3 and 1
    cubic = [fraction_after(k, 3, 0.8, "cubic") for k in range(4)]
    assert cubic == pytest.approx([0, 0.8 * 19 / 27, 0.8 * 26 / 27, 0.8])
    assert [fraction_after(k, 3, 0.8, "one-shot") for k in range(4)] == [0, 0.8, 0.8, 0.8]


@pytest.mark.parametrize("schedule", ["geometric", "cubic", "one-shot"])
@given(rounds=ROUNDS, target=FRACTIONS)
def test_every_schedule_only_grows_and_ends_at_the_target(
    schedule: Schedule, rounds: int, target: float
) -> None:
    gone = [fraction_after(k, rounds, target, schedule) for k in range(rounds + 1)]
    assert gone[0] == 0
    assert gone[-1] == target
    assert all(before <= after for before, after in pairwise(gone))


@pytest.mark.parametrize("call", [(4, 3, 0.5), (-1, 3, 0.5), (0, 0, 0.5), (1, 3, 1.0)])
def test_refuses_what_is_out_of_range(call: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="no round"):
        fraction_after(*call)
