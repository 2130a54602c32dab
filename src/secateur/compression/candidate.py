"""A candidate: what is removed and how the rest is quantized; and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from secateur import recipe
from secateur.compression.settings import Target
from secateur.recipe import Part
from secateur.statistics import Interval, paired_drop, proportion

Objective = Literal["macs", "parameters", "latency"]
OBJECTIVES: dict[Target, Objective] = {"latency": "macs", "size": "parameters", "macs": "macs"}
"""What is counted while channels are chosen. Latency is measured of each candidate afterwards; in
the choice of channels, MACs stand for it."""


class Method(Part):
    """How channels are chosen; see :func:`secateur.plan_removal`."""

    importance: Literal["l2", "taylor"] = "l2"
    scope: Literal["local", "global"] = "local"

    def __str__(self) -> str:
        """For example ``global taylor``."""
        return f"{self.scope} {self.importance}"


class Removal(Part):
    """What leaves the network."""

    kept: Annotated[float, Field(gt=0, lt=1)]
    objective: Objective
    method: Method = Method()


class Candidate(Part):
    """One network to try, as plain data.

    Attributes:
        removal: None for the network as it is.
        epochs: Of fine-tuning.
        quantize: None for a float file.
    """

    removal: Removal | None = None
    epochs: int = 0
    quantize: recipe.Quantize | None = None

    @property
    def kept(self) -> float:
        """Share of the network that stays."""
        return self.removal.kept if self.removal else 1.0

    @property
    def name(self) -> str:
        """Short, for example ``macs 0.50, local l2, int8``."""
        words = []
        if self.removal:
            words += [f"{self.removal.objective} {self.kept:.2f}", str(self.removal.method)]
        words.append("float" if self.quantize is None else _bits(self.quantize))
        return ", ".join(words)


def _bits(config: recipe.Quantize) -> str:
    if config.price:
        return f"int8 at price {config.price}"
    return f"int{config.bits}" if config.bits != "mixed" else "mixed bits"


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of a candidate on this machine.

    Attributes:
        candidate: What it is.
        folder: Holds ``net.onnx`` and ``net.sec``; None where it was given up. What needs files is
            empty or 0 then.
        right: On validation, shape (n,).
        reference: Whether the given network is right on the same images.
        onnx_bytes: Of the ONNX file.
        packed_bytes: Of the packed file.
        latencies_ms: Of one image, shape (turns,).
        reference_latencies_ms: Of the given network in ONNX Runtime, in the same turns.
        macs: Multiply-accumulates of one image.
        parameters: Elements of all parameters.
        seconds: It took to make.
        given_up: Why there are no files; empty where there are.
    """

    candidate: Candidate
    folder: Path | None
    right: npt.NDArray[np.bool_]
    reference: npt.NDArray[np.bool_]
    onnx_bytes: int
    packed_bytes: int
    latencies_ms: npt.NDArray[np.float64]
    reference_latencies_ms: npt.NDArray[np.float64]
    macs: int
    parameters: int
    seconds: float
    given_up: str = ""

    @classmethod
    def without_files(
        cls,
        candidate: Candidate,
        reason: str,
        macs: int = 0,
        parameters: int = 0,
        seconds: float = 0.0,
    ) -> Measured:
        """A candidate that was given up for ``reason``, or could not be made."""
        nothing, never = np.empty(0, bool), np.empty(0)
        return cls(
            candidate, None, nothing, nothing, 0, 0, never, never, macs, parameters, seconds, reason
        )

    @property
    def accuracy(self) -> Interval:
        """On validation, in [0, 1]."""
        return proportion(int(self.right.sum()), len(self.right))

    @property
    def drop(self) -> Interval:
        """On validation, reference minus candidate, in [-1, 1]."""
        return paired_drop(self.reference, self.right)

    @property
    def latency_ms(self) -> float:
        """Median time of one image."""
        return float(np.median(self.latencies_ms))

    @property
    def relative_latency(self) -> float:
        """Median time as a share of the given network's, timed in turns: no drift is in it."""
        return self.latency_ms / float(np.median(self.reference_latencies_ms))

    def cost(self, target: Target) -> float:
        """What the target counts: relative latency, bytes of the packed file, or MACs."""
        costs = {"latency": self.relative_latency, "size": self.packed_bytes, "macs": self.macs}
        return float(costs[target])
