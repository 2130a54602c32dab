"""Decides after each epoch whether a candidate is worth the rest of its fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from secateur.compression.tuning import Hopeless
from secateur.training.trainer import Epoch

SLACK = 2.0
"""A candidate is abandoned if its loss, minus the best gain so far, exceeds the allowed loss by
this many points."""


class TimeUpError(Exception):
    """The time limit would be exceeded before the candidate is finished."""


class Patience:
    """Compares candidates with the training curves of those that finished.

    Args:
        reference: Accuracy of the given network on the validation images that are evaluated each
            epoch, in [0, 1].
        max_drop: Allowed loss in percentage points.
    """

    def __init__(self, reference: float, max_drop: float) -> None:
        self.reference, self.max_drop = reference, max_drop
        self._histories: list[Sequence[Epoch]] = []

    def learn(self, history: Sequence[Epoch]) -> None:
        """Record the training curve of a finished candidate."""
        self._histories.append(history)

    def rule(self, epochs: int, in_time: Callable[[int], bool]) -> Hopeless:
        """Return a function that decides whether to abandon a candidate.

        If the time is over, it raises :class:`TimeUpError`; the next run continues from the
        checkpoint.

        Args:
            epochs: Of the candidate.
            in_time: Whether a number of further epochs, at least 1, ends in time.
        """
        gains = [
            [_share(history[-1]) - _share(epoch) for epoch in history]
            for history in self._histories
            if len(history) == epochs
        ]

        def reason(history: Sequence[Epoch]) -> str:
            done = len(history)
            if done < epochs and not in_time(epochs - done):
                raise TimeUpError
            if done == epochs or not gains:
                return ""
            expected = _share(history[-1]) + max(gain[done - 1] for gain in gains)
            drop = 100 * (self.reference - expected)
            if drop <= self.max_drop + SLACK:
                return ""
            return f"{drop:.1f} points behind after {done} of {epochs} epochs, gains included"

        return reason


def _share(epoch: Epoch) -> float:
    return epoch.validation_right / epoch.validation_images
