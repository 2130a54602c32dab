"""How much is gone after each round."""

from __future__ import annotations


def fraction_after(index: int, rounds: int, target: float) -> float:
    """Fraction pruned after round k of R: ``1 - (1 - target) ** (k / R)``.

    Each round removes the same share of what is left (Frankle & Carbin 2019, section 2), and the
    last one reaches the target exactly.

    Args:
        index: k, in [0, rounds].
        rounds: R, 1 or more.
        target: In [0, 1).

    Raises:
        ValueError: An argument is out of range.
    """
    if rounds < 1 or not 0 <= index <= rounds or not 0 <= target < 1:
        raise ValueError(f"no round {index} of {rounds} to fraction {target}")
    return target if index == rounds else 1 - (1 - target) ** (index / rounds)
