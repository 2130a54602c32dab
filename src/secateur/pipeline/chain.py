"""A recipe's chain on one machine: what its stages share, and each stage made at most once.

A stage is a function of its own part of the recipe and of the stages before it. What stages there
are, and in which order, stands in :mod:`secateur.pipeline.stages`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.console import say
from secateur.data import DataSet, Images, Preparation, geometry, open_data
from secateur.errors import SecateurError
from secateur.models.build import build_network
from secateur.pruning.plan import Plan
from secateur.pruning.surgery import rebuild
from secateur.recipe import Part, Recipe
from secateur.store import Stage, Store

Variant = Literal["reference", "pruned", "quantized"]
VARIANTS: tuple[Variant, ...] = ("reference", "pruned", "quantized")
"""The three files of a chain, in the order in which they are made."""


@dataclass(frozen=True)
class StageDefinition:
    """One stage of a chain.

    Attributes:
        name: For example ``train`` or ``prune-2``.
        make: Writes the stage's files into the folder it is given.
        key: The part of the recipe, and all else, that decides the outcome; plain data.
        reads: The stages that it reads, by the name under which the content id knows them.
        part_of: The goal that it belongs to, where that is not its own name.
        on_request: Made only when it is the goal itself, or another stage reads it.
    """

    name: str
    make: Callable[[Chain, Path], None]
    key: Callable[[Chain], dict[str, Any]]
    reads: Mapping[str, str] = field(default_factory=dict)
    part_of: str = ""
    on_request: bool = False

    @property
    def goal(self) -> str:
        """The name by which a user asks for it; ``prune`` is all rounds and the removal."""
        return self.part_of or self.name


@dataclass
class Chain:
    """One recipe, where its stages are kept, and what they share.

    Attributes:
        recipe: What to do.
        store: Where stages are kept.
        data_root: Folder with the data set's files, or None.
        device: Where to train and evaluate.
        definitions: All stages, in the order in which they are made.
    """

    recipe: Recipe
    store: Store
    data_root: Path | None
    device: torch.device
    definitions: list[StageDefinition]

    def stage(self, name: str) -> Stage:
        """Make or find a stage and all that it reads.

        Args:
            name: As in ``definitions``.

        Raises:
            SecateurError: The stage cannot be made.
        """
        if name not in self._stages:
            definition = self._by_name[name]
            reads = {role: self.stage(other) for role, other in definition.reads.items()}
            self._stages[name] = self.make(name, definition.key(self), reads, definition.make)
        return self._stages[name]

    def make(
        self,
        name: str,
        key: Mapping[str, Any],
        reads: Mapping[str, Stage],
        make: Callable[[Chain, Path], None],
    ) -> Stage:
        """Make or find one stage, and report which; see :meth:`secateur.store.Store.stage`."""
        stage = self.store.stage(name, key, reads, lambda folder: make(self, folder))
        if stage.fresh:
            say(f"{name}: done in {stage.manifest['seconds']:.1f} s  {stage.folder}")
        else:
            say(f"{name}: in place  {stage.folder}")
        return stage

    def stages(self, goal: str) -> Iterator[Stage]:
        """Make or find each stage up to ``goal``, in order.

        Raises:
            SecateurError: A stage cannot be made, or there is no such goal.
        """
        goals = [definition.goal for definition in self.definitions]
        if goal not in goals:
            raise SecateurError(
                "unknown goal", found=goal, expected=", ".join(dict.fromkeys(goals))
            )
        last = len(goals) - 1 - goals[::-1].index(goal)
        for definition in self.definitions[: last + 1]:
            if not definition.on_request or definition.goal == goal:
                yield self.stage(definition.name)

    @cached_property
    def _stages(self) -> dict[str, Stage]:
        return {}

    @cached_property
    def _by_name(self) -> dict[str, StageDefinition]:
        return {definition.name: definition for definition in self.definitions}

    @property
    def rounds(self) -> list[Stage]:
        """Each round of pruning and retraining."""
        names = [d.name for d in self.definitions if d.name.startswith("prune-")]
        return [self.stage(name) for name in names]

    # ---- data

    @cached_property
    def data_set(self) -> DataSet:
        """The images in three parts; files that are there but changed are refused here."""
        config = self.recipe.data
        return open_data(config, self.data_root, geometry(config, self.recipe.network.resolution))

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Name, classes, shape, counts, mean and standard deviation, fingerprint."""
        return self.stage("data").json("data.json")

    @cached_property
    def parts(self) -> tuple[Images, Images]:
        """Training images, with the labels to train on, and validation images; on the device."""
        stored = self.stage("data").tensors("split.safetensors")
        images = self.data_set.source
        training, validation = (images.take(stored[part]) for part in ("training", "validation"))
        if "labels" in stored:
            training = replace(training, labels=stored["labels"])
        return training.to(self.device), validation.to(self.device)

    @cached_property
    def prepare(self) -> Preparation:
        """From stored pixels to the network's input."""
        mean, std = (tuple(self.data_facts[key]) for key in ("mean", "std"))
        neutral = geometry(self.recipe.data, self.recipe.network.resolution)
        return replace(neutral, mean=mean, std=std)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one prepared image."""
        side = self.recipe.network.resolution
        return self.data_facts["shape"][0], side, side

    @property
    def example(self) -> Tensor:
        """One image of zeros, float32, shape (1, C, R, R)."""
        return torch.zeros(1, *self.input_shape)

    # ---- networks

    def fresh_network(self) -> nn.Module:
        """Build the untrained network."""
        facts = self.data_facts
        return build_network(
            self.recipe.network, facts["shape"][0], len(facts["classes"]), self.recipe.seed
        )

    def load_network(self, stage: str | Stage) -> nn.Module:
        """Rebuild a stage's network, in inference mode, from its recipe, plan and weights."""
        stage = self.stage(stage) if isinstance(stage, str) else stage
        network = rebuild(self.fresh_network(), plan_of(stage))
        network.load_state_dict(stage.tensors("weights.safetensors"))
        return self.place(network).eval()

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, channels last."""
        return network.to(device=self.device).to(memory_format=torch.channels_last)

    # ---- files

    @property
    def metadata(self) -> dict[str, str]:
        """What a user of an exported file must know: classes, and how images are prepared."""
        facts = {key: json.dumps(self.data_facts[key]) for key in ("classes", "name")}
        return facts | self.prepare.to_metadata()

    def file(self, variant: Variant) -> Path:
        """The ONNX file of ``variant``."""
        if variant == "quantized":
            return self.stage(self.quantized).folder / "quantized.onnx"
        return self.stage("export").folder / f"{variant}.onnx"

    @property
    def quantized(self) -> str:
        """The stage whose quantized file ships."""
        return "quantize-train" if self.recipe.quantize.epochs else "quantize"

    @property
    def packed_file(self) -> Path:
        """The packed file."""
        return self.stage("pack").folder / "net.sec"


def plan_of(stage: Stage) -> Plan:
    """All that was removed from the trained network up to ``stage``."""
    path = stage.folder / "plan.json"
    return Plan.from_json(path.read_text(encoding="utf-8")) if path.exists() else Plan()


def changed_fields(part: Part, *without: str) -> dict[str, Any]:
    """Fields of a part of the recipe that differ from their defaults, as plain data."""
    return part.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
