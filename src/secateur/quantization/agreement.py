"""Agreement of a quantized network with its float network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Comparison of the predictions of a quantized network and its float network.

    Attributes:
        images: Number of images.
        same: Number of images with the same class.
        signal_to_noise_db: Variance of the float logits over that of the difference, in decibels.
        correct: Number of correct images of the quantized network; None without labels.
        float_correct: Number of correct images of the float network; None without labels.
    """

    images: int
    same: int
    signal_to_noise_db: float
    correct: int | None = None
    float_correct: int | None = None

    @property
    def agreement(self) -> float:
        """Fraction of images with the same class, in [0, 1]."""
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
        reference: Logits of the float network, of the same shape.
        labels: int64 (N,), or None.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> agreement(logits, logits.flip(0)).same
        0
    """
    chosen, expected = quantized.argmax(1), reference.argmax(1)
    # Remove the mean over images, which does not affect decisions and would inflate the ratio.
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
