"""A candidate (a plan of removal and quantization), and its measurements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from secateur import recipe
from secateur.compression.settings import Goal, Target
from secateur.recipe import Part
from secateur.statistics import Interval, paired_drop, proportion

Objective = Literal["macs", "parameters", "latency"]
OBJECTIVES: dict[Target, Objective] = {"latency": "macs", "size": "parameters", "macs": "macs"}
"""The cost that planning reduces, for each target. MACs approximate latency in planning; the
latency of each candidate is measured afterwards."""


class Method(Part):
    """How channels are chosen; see :func:`secateur.plan_removal`."""

    importance: Literal["l2", "taylor"] = "l2"
    scope: Literal["local", "global"] = "local"

    def __str__(self) -> str:
        """For example ``global taylor``."""
        return f"{self.scope} {self.importance}"


class Removal(Part):
    """The channels to remove."""

    kept: Annotated[float, Field(gt=0, lt=1)]
    objective: Objective
    method: Method = Method()


class Merging(Part):
    """Layers to merge and residual blocks to remove; see :func:`secateur.merge_depth`."""

    kept: Annotated[float, Field(gt=0, lt=1)]
    """Largest remaining fraction of the latency."""


class Candidate(Part):
    """One network to try, as plain data.

    Attributes:
        removal: None for the unpruned network.
        merging: None, or in place of ``removal``.
        epochs: Epochs of fine-tuning.
        quantize: None for a float file.
    """

    removal: Removal | None = None
    merging: Merging | None = None
    epochs: int = 0
    quantize: recipe.Quantize | None = None

    @property
    def kept(self) -> float:
        """Fraction of the network's cost that is kept."""
        changed = self.removal or self.merging
        return changed.kept if changed else 1.0

    @property
    def reduction(self) -> str:
        """What is removed or merged, for example ``macs 0.50``; empty for the whole network."""
        if self.merging:
            return f"latency {self.kept:.2f} by merging"
        return f"{self.removal.objective} {self.kept:.2f}" if self.removal else ""

    @property
    def name(self) -> str:
        """A short description, for example ``macs 0.50, local l2, int8``."""
        words = [self.reduction] if self.reduction else []
        if self.removal:
            words.append(str(self.removal.method))
        words.append("float" if self.quantize is None else _bits(self.quantize))
        return ", ".join(words)


def _bits(config: recipe.Quantize) -> str:
    bits = f"int{config.bits}" if config.bits != "mixed" else "mixed bits"
    ranges = ", auto ranges" if config.method == "auto" else ""
    how = f" at price {config.price}" if config.price else ranges
    return bits + how + (", trained" if config.epochs else "")


@dataclass(frozen=True, eq=False)
class Measured:
    """Measurements of a candidate on this machine.

    Attributes:
        candidate: The candidate.
        folder: Folder with ``net.onnx`` and ``net.sec``; None if it was abandoned. Attributes that
            need files are then empty or 0.
        right: Whether each validation image is classified correctly, shape (n,).
        reference: The same for the given network.
        onnx_bytes: Size of the ONNX file.
        packed_bytes: Size of the packed file.
        latencies_ms: Latency of one image in each turn, shape (turns,); after the search, all
            candidates share the turns.
        reference_latencies_ms: The same for the given network in ONNX Runtime, in the same turns.
        macs: Multiply-accumulates of one image.
        parameters: Number of elements of all parameters.
        seconds: Time to make and to measure the candidate.
        given_up: Why there are no files; empty if there are.
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
        """A candidate without files, because it was abandoned or could not be made."""
        nothing, never = np.empty(0, bool), np.empty(0)
        return cls(
            candidate, None, nothing, nothing, 0, 0, never, never, macs, parameters, seconds, reason
        )

    @property
    def accuracy(self) -> Interval:
        """Accuracy on validation, in [0, 1]."""
        return proportion(int(self.right.sum()), len(self.right))

    @property
    def drop(self) -> Interval:
        """Loss of accuracy on validation, reference minus candidate, in [-1, 1]."""
        return paired_drop(self.reference, self.right)

    @property
    def latency_ms(self) -> float:
        """Median latency of one image."""
        return float(np.median(self.latencies_ms))

    @property
    def relative_latency(self) -> float:
        """Median latency relative to the given network, timed in turns to cancel drift."""
        return self.latency_ms / float(np.median(self.reference_latencies_ms))

    def meets(self, goal: Goal) -> bool:
        """Whether the files are within a goal's limits on latency and size."""
        if self.folder is None:
            return False
        fast = goal.latency_ms is None or self.latency_ms <= goal.latency_ms
        small = goal.size_bytes is None or self.packed_bytes <= goal.size_bytes
        return fast and small

    @property
    def metrics(self) -> dict[str, float]:
        """Values to log."""
        values: dict[str, float] = {"kept": self.candidate.kept, "macs": self.macs}
        if self.folder is not None:
            values |= {"validation_accuracy": self.accuracy.value, "latency_ms": self.latency_ms}
            values |= {"drop": self.drop.value, "packed_bytes": self.packed_bytes}
        return values

    def cost(self, target: Target) -> float:
        """The cost by target: relative latency, bytes of the packed file, or MACs."""
        costs = {"latency": self.relative_latency, "size": self.packed_bytes, "macs": self.macs}
        return float(costs[target])
