"""Schedules of the pruned fraction over rounds."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["geometric", "cubic", "one-shot"]


def fraction_after(
    index: int, rounds: int, target: float, schedule: Schedule = "geometric"
) -> float:
    """Fraction pruned after round k of R; the last round reaches the target exactly.

    - ``geometric``: ``1 - (1 - target) ** (k / R)``, the same fraction of the remaining channels in
      each round (Frankle & Carbin 2019, section 2).
    - ``cubic``: ``target * (1 - (1 - k / R) ** 3)``, most in early rounds
      (Zhu & Gupta 2017, eq. 1).
    - ``one-shot``: everything in the first round; later rounds only retrain.

    Args:
        index: k, in [0, rounds].
        rounds: R, at least 1.
        target: Fraction after the last round, in [0, 1).
        schedule: One of the above.

    Raises:
        ValueError: An argument is out of range.
    """
    if rounds < 1 or not 0 <= index <= rounds or not 0 <= target < 1:
        raise ValueError(f"no round {index} of {rounds} to fraction {target}")
    if index == rounds or (schedule == "one-shot" and index > 0):
        return target
    if schedule == "cubic":
        return target * (1 - (1 - index / rounds) ** 3)
    return 0.0 if schedule == "one-shot" else 1 - (1 - target) ** (index / rounds)
