"""Agreement of the quantized file with its simulation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secateur.quantization.simulate import Simulated
from secateur.runtimes import Runtime


@dataclass(frozen=True)
class Difference:
    """An image with different decisions of file and simulation.

    Attributes:
        image: Index of the image.
        file: Class chosen by the file.
        simulated: Class chosen by the simulation.
        file_margin: Margin of the file's class over the other, in logits, non-negative.
        simulated_margin: Margin of the simulation's class over the other, in logits.
    """

    image: int
    file: int
    simulated: int
    file_margin: float
    simulated_margin: float


@dataclass(frozen=True)
class Parity:
    """Agreement of a file with its simulation.

    Attributes:
        n: Number of images.
        differences: Images with different decisions.
        typical_margin: Median margin of the simulation's class over the next, in logits.
    """

    n: int
    differences: tuple[Difference, ...]
    typical_margin: float

    @property
    def agreement(self) -> float:
        """Fraction of images with the same decision, in [0, 1]."""
        return 1 - len(self.differences) / self.n

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self) | {"agreement": self.agreement}


@torch.inference_mode()
def compare(
    runtime: Runtime, simulated: Simulated, batches: Iterable[npt.NDArray[np.float32]]
) -> Parity:
    """Run a quantized file and its simulation on the same images.

    Args:
        runtime: Runtime with the file.
        simulated: Simulation of the file; see :func:`secateur.quantization.qdq.read_scheme`.
        batches: Normalized images, float32 (N, C, R, R).

    Raises:
        ValueError: There are no images.
    """
    pairs = [(runtime.run(batch), simulated(torch.from_numpy(batch)).numpy()) for batch in batches]
    if not pairs:
        raise ValueError("need at least one batch of images")
    logits = np.concatenate([scores for scores, _ in pairs])
    simulated_logits = np.concatenate([scores for _, scores in pairs])
    ranked = np.sort(simulated_logits, axis=1)
    chosen, expected = logits.argmax(1), simulated_logits.argmax(1)
    return Parity(
        len(logits),
        tuple(
            Difference(
                int(i),
                int(chosen[i]),
                int(expected[i]),
                float(logits[i, chosen[i]] - logits[i, expected[i]]),
                float(simulated_logits[i, expected[i]] - simulated_logits[i, chosen[i]]),
            )
            for i in np.flatnonzero(chosen != expected)
        ),
        float(np.median(ranked[:, -1] - ranked[:, -2])),
    )
