"""Goal and settings of a compression."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from secateur import recipe
from secateur.errors import RecipeError
from secateur.recipe import Count, Part, Positive
from secateur.wording import counted

Target = Literal["latency", "size", "macs"]


class Goal(Part):
    """The goal of a compression."""

    max_drop: Annotated[float, Field(gt=0, lt=100)] = Field(
        default=1.0, description="Accuracy that may be lost, in percentage points."
    )
    target: Target = Field(default="latency", description="What becomes as small as possible.")
    latency_ms: Positive | None = Field(
        default=None,
        description="Limit for one image; the most accurate candidate within it is chosen.",
    )
    size_bytes: Count | None = Field(
        default=None, description="Bytes the packed file may have; likewise."
    )
    within_seconds: Positive | None = Field(
        default=None, description="Time the search may take, kept to a tenth; without it, no limit."
    )

    @property
    def is_absolute(self) -> bool:
        """Whether the goal is a limit on latency or size."""
        return self.latency_ms is not None or self.size_bytes is not None

    def __str__(self) -> str:
        """The goal in words."""
        words = f"at most {counted(self.max_drop, 'point')} less accurate"
        if self.latency_ms is not None:
            words += f", {self.latency_ms:g} ms an image or less"
        if self.size_bytes is not None:
            words += f", {self.size_bytes:,} bytes or less"
        if not self.is_absolute:
            best = {"latency": "as fast", "size": "as small", "macs": "as few MACs"}
            words += f", {best[self.target]} as possible"
        return words


class Tune(Part):
    """Fine-tuning of a pruned candidate, from the given weights."""

    epochs: Annotated[int, Field(ge=0)] = Field(default=4, description="Epochs for each candidate.")
    batch_size: Count = Field(default=64, description="Images in a step.")
    optimizer: Literal["auto", "sgd", "adamw"] = Field(
        default="auto",
        description="`auto` takes SGD for networks with batch-norm, AdamW for others.",
    )
    schedule: Literal["one-cycle", "cosine"] = Field(
        default="one-cycle", description="How the learning rate falls after its rise."
    )
    learning_rate: Positive | None = Field(
        default=None, description="Peak learning rate; by default 0.02 for SGD, 0.0002 for AdamW."
    )
    distill: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.7, description="Share of the loss that is the divergence from the given network."
    )
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Of the weights; by default 0.0005 for SGD, 0.05 for AdamW."
    )
    ema: recipe.Fraction = Field(
        default=0.99, description="Decay of the weights' average; 0 disables it."
    )
    augment: recipe.Augment = Field(
        default=recipe.Augment(flip=True, crop=2), description="Changes to each training image."
    )

    def to_train(self, network: nn.Module, epochs: int) -> recipe.Train:
        """Return the trainer's settings for a network and a number of epochs."""
        optimizer = self.optimizer
        if optimizer == "auto":
            normalized = any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
            optimizer = "sgd" if normalized else "adamw"
        rate, decay = {"sgd": (0.02, 5e-4), "adamw": (2e-4, 0.05)}[optimizer]
        return recipe.Train(
            epochs=epochs,
            batch_size=self.batch_size,
            optimizer=optimizer,
            schedule=self.schedule,
            learning_rate=self.learning_rate or rate,
            weight_decay=decay if self.weight_decay is None else self.weight_decay,
            ema=self.ema,
            warmup=0.1,
            augment=self.augment,
        )


class Settings(Part):
    """All settings of a compression."""

    goal: Goal = Field(default=Goal(), description="What the result is tested against.")
    tune: Tune = Field(default=Tune(), description="Fine-tuning of each candidate.")
    quantize: recipe.Quantize = Field(
        default=recipe.Quantize(), description="Quantization of each candidate."
    )
    bench: recipe.Bench = Field(
        default=recipe.Bench(repeats=50, warmup=5), description="Timing of each candidate."
    )
    round_to: Literal[1, 4, 8, 16] = Field(default=8, description="Widths are multiples of this.")
    merge: bool = Field(
        default=False,
        description="Also try networks with merged layers, if `latency` is the target.",
    )
    smallest: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="Smallest share of the network that is tried."
    )
    tries: Count = Field(default=6, description="Most candidates of the bisection.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Of the split, the order of images and augmentation."
    )

    @property
    def merges(self) -> bool:
        """Whether merged layers can help, and are wanted."""
        return self.merge and self.goal.target == "latency" and not self.goal.is_absolute


_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+)\s*([A-Za-z]*)")

_UNITS = {
    "time": {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0},
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "size": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "KiB": 2.0**10, "MiB": 2.0**20},
}
_EXAMPLES = {"time": "30m", "latency": "2ms", "size": "300kB"}


def parse_quantity(text: str, kind: Literal["time", "latency", "size"]) -> float:
    """Read a number with its unit: seconds of a time, ms of a latency, bytes of a size.

    Args:
        text: Such as ``30m``, ``2ms`` or ``300kB``.
        kind: Kind of quantity; it determines the units.

    Raises:
        RecipeError: The text is not a positive number with such a unit.

    Example:
        >>> parse_quantity("1.5h", "time"), parse_quantity("300kB", "size")
        (5400.0, 300000.0)
    """
    match, units = _QUANTITY.fullmatch(text.strip()), _UNITS[kind]
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise RecipeError(
            f"not a {kind}",
            expected=f"a number and one of {', '.join(units)}, such as {_EXAMPLES[kind]}",
            found=text,
        )
    return float(match[1]) * units[match[2]]
