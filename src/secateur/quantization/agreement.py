"""How close a quantized network is to the float network it was made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Answers of a quantized network beside those of its float network.

    Attributes:
        images: How many both were run on.
        same: Images on which both choose one class.
        signal_to_noise_db: Power of the float logits over that of their difference, in decibels,
            both about their mean over the images.
        correct: Images on which the quantized network is right; None without labels.
        float_correct: Likewise the float network.
    """

    images: int
    same: int
    signal_to_noise_db: float
    correct: int | None = None
    float_correct: int | None = None

    @property
    def agreement(self) -> float:
        """Share of images on which both choose one class, in [0, 1]."""
        return self.same / self.images

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self) | {"agreement": self.agreement}

    def __str__(self) -> str:
        line = (
            f"chooses the class of the float network on {self.same:,} of {self.images:,} images, "
            f"{100 * self.agreement:.2f} %; signal to noise of the logits "
            f"{self.signal_to_noise_db:.1f} dB"
        )
        if self.correct is None or self.float_correct is None:
            return line
        return (
            f"{line}; right on {self.correct:,} images, the float network on {self.float_correct:,}"
        )


def agreement(quantized: Tensor, reference: Tensor, labels: Tensor | None = None) -> Agreement:
    """Compare the logits of two networks.

    Args:
        quantized: float (N, classes), N at least 1.
        reference: Of the float network, of the same shape.
        labels: int64 (N,), or None.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> agreement(logits, logits.flip(0)).same
        0
    """
    chosen, expected = quantized.argmax(1), reference.argmax(1)
    # What all images have in common decides nothing, and would flatter the ratio.
    signal = reference - reference.mean(0)
    noise = (quantized - reference) - (quantized - reference).mean(0)
    powers = [float(part.double().square().sum()) for part in (signal, noise)]
    tiny = float(np.finfo(np.float64).tiny)
    decibels = 10 * np.log10(max(powers[0], tiny) / max(powers[1], tiny))
    result = Agreement(len(chosen), int((chosen == expected).sum()), float(decibels))
    if labels is None:
        return result
    right, float_right = (int((each == labels).sum()) for each in (chosen, expected))
    return replace(result, correct=right, float_correct=float_right)
