"""The complete recipe, and its content id."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

import tomli_w
from pydantic import Field, model_validator

from secateur.recipe.compression_fields import Bench, Prune, Quantize
from secateur.recipe.fields import Data, Network, Part, Scan, Teacher, Train


class Recipe(Part):
    """A recipe."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)] = Field(
        description="Name of the run's folder; not part of the id."
    )
    description: str = Field(default="", description="A line for people; not part of the id.")
    preset: Literal["paper", "accurate", "fast", "quick", "custom"] = Field(
        default="custom", description="Family of built-in recipes; not part of the id."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="Seed of initial weights, batches, augmentation and pruning."
    )
    data: Data = Field(description="The images.")
    network: Network = Field(description="The network.")
    teacher: Teacher | None = Field(
        default=None, description="Network for train.distill and prune.teacher, trained first."
    )
    train: Train = Field(description="Training of the reference network.")
    scan: Scan = Field(default=Scan(), description="The pruning scan.")
    prune: Prune = Field(description="Pruning and retraining.")
    quantize: Quantize = Field(default=Quantize(), description="Quantization.")
    bench: Bench = Field(default=Bench(), description="Measurement.")

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        by_teacher = self.train.distill > 0 or self.prune.teacher == "teacher"
        if by_teacher and self.teacher is None:
            raise ValueError(
                'a [teacher] table where train.distill is above 0 or prune.teacher is "teacher"'
            )
        return self

    @property
    def id(self) -> str:
        """Content id of the recipe, without names and descriptions: 12 hexadecimal digits."""
        values = self.model_dump(
            mode="json", exclude_defaults=True, exclude={"name", "description", "preset"}
        )
        return content_id(values)

    @property
    def geometry(self) -> str:
        """The geometry in words, for example ``28x28 stem=stride1``."""
        side = self.network.resolution
        return f"{side}x{side} stem={self.network.stem}"

    def to_toml(self) -> str:
        """The recipe as TOML, with all fields."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def content_id(value: object) -> str:
    """First 12 hexadecimal digits of the SHA-256 of ``value`` as canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
