"""The chain of a recipe: state shared by its stages, each of which runs at most once.

A stage is a function of its own part of the recipe and of the stages that it reads.
:mod:`secateur.pipeline.stages` lists the stages in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.console import say
from secateur.data import DataSet, Images, Preparation, geometry, open_data
from secateur.errors import SecateurError
from secateur.models.build import build_network
from secateur.pruning.plan import Plan
from secateur.pruning.planner import Start, start_of
from secateur.pruning.surgery import rebuild
from secateur.recipe import Part, Recipe
from secateur.store import Stage, Store
from secateur.training import ranks

Variant = Literal["reference", "pruned", "quantized"]
VARIANTS: tuple[Variant, ...] = ("reference", "pruned", "quantized")
"""The three ONNX files of a chain, in order."""


@dataclass(frozen=True)
class StageDefinition:
    """One stage of a chain.

    Attributes:
        name: For example ``train`` or ``prune-2``.
        make: Writes the stage's files into a given folder.
        key: Everything that determines the result, such as a part of the recipe; plain data.
        reads: The stages that it reads, by their name in the content id.
        part_of: The goal that it belongs to, if that is not its own name.
        on_request: Whether it is made only as the goal itself, or if another stage reads it.
        trains: Whether all processes take part in it; otherwise process 0 makes it alone.
    """

    name: str
    make: Callable[[Chain, Path], None]
    key: Callable[[Chain], dict[str, Any]]
    reads: Mapping[str, str] = field(default_factory=dict)
    part_of: str = ""
    on_request: bool = False
    trains: bool = False

    @property
    def goal(self) -> str:
        """The name of the goal; ``prune`` includes all rounds and the removal."""
        return self.part_of or self.name


@dataclass
class Chain:
    """A recipe, the store of its stages, and state that they share.

    Attributes:
        recipe: The recipe.
        store: Keeps the stages.
        data_root: Folder with the data set's files, or None.
        device: Device for training and evaluation.
        definitions: All stages, in order.
    """

    recipe: Recipe
    store: Store
    data_root: Path | None
    device: torch.device
    definitions: list[StageDefinition]

    def stage(self, name: str) -> Stage:
        """Return a stage; make it and the stages that it reads if missing.

        Args:
            name: Name of a stage in ``definitions``.

        Raises:
            SecateurError: The stage cannot be made.
        """
        if name not in self._stages:
            definition = self._by_name[name]
            reads = {role: self.stage(other) for role, other in definition.reads.items()}
            self._stages[name] = self.make(
                name, definition.key(self), reads, definition.make, definition.trains
            )
        return self._stages[name]

    def make(
        self,
        name: str,
        key: Mapping[str, Any],
        reads: Mapping[str, Stage],
        make: Callable[[Chain, Path], None],
        trains: bool = False,
    ) -> Stage:
        """Return one stage, made if missing, and log it; see :meth:`secateur.store.Store.stage`."""
        if ranks.rank():
            return self._follow(name, key, reads, make, trains)

        def begin(folder: Path) -> None:
            ranks.agreed(True)
            make(self, folder)

        stage = self.store.stage(name, key, reads, begin)
        if not stage.fresh:
            ranks.agreed(False)
        ranks.agreed(None)  # it is there
        if stage.fresh:
            say(f"{name}: done in {stage.manifest['seconds']:.1f} s  {stage.folder}")
        else:
            say(f"{name}: in place  {stage.folder}")
        return stage

    def _follow(
        self,
        name: str,
        key: Mapping[str, Any],
        reads: Mapping[str, Stage],
        make: Callable[[Chain, Path], None],
        trains: bool,
    ) -> Stage:
        """Take part in the training of a stage that process 0 makes, and find the stage."""
        if ranks.agreed(None) and trains:
            with TemporaryDirectory() as unused:
                make(self, Path(unused))
        ranks.agreed(None)
        finished = Store(self.store.root, find_only=True)
        return finished.stage(name, key, reads, lambda folder: None)

    def stages(self, goal: str) -> Iterator[Stage]:
        """Yield each stage up to ``goal`` in order, made if missing.

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
        """The images in three parts. Raises an error if a file was changed."""
        config = self.recipe.data
        return open_data(config, self.data_root, geometry(config, self.recipe.network.resolution))

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """Name, classes, shape, counts, mean, standard deviation and fingerprint of the data."""
        return self.stage("data").json("data.json")

    @cached_property
    def parts(self) -> tuple[Images, Images]:
        """Training images with the labels for training, and validation images, on the device."""
        stored = self.stage("data").tensors("split.safetensors")
        images = self.data_set.source
        training, validation = (images.take(stored[part]) for part in ("training", "validation"))
        if "labels" in stored:
            training = replace(training, labels=stored["labels"])
        return training.to(self.device), validation.to(self.device)

    @cached_property
    def prepare(self) -> Preparation:
        """The image preparation."""
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

    @cached_property
    def dense(self) -> Start:
        """The unpruned architecture, and the channels that can be removed from it."""
        return start_of(self.fresh_network(), self.example, self.recipe.prune)

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
        """Metadata of exported files: classes and image preparation."""
        facts = {key: json.dumps(self.data_facts[key]) for key in ("classes", "name")}
        return facts | self.prepare.to_metadata()

    def file(self, variant: Variant) -> Path:
        """The ONNX file of ``variant``."""
        if variant == "quantized":
            return self.stage(self.quantized).folder / "quantized.onnx"
        return self.stage("export").folder / f"{variant}.onnx"

    @property
    def quantized(self) -> str:
        """The stage of the final quantized file."""
        return "quantize-train" if self.recipe.quantize.epochs else "quantize"

    @property
    def packed_file(self) -> Path:
        """The packed file."""
        return self.stage("pack").folder / "net.sec"


def plan_of(stage: Stage) -> Plan:
    """The composed plan of all removals from the trained network up to ``stage``."""
    path = stage.folder / "plan.json"
    return Plan.from_json(path.read_text(encoding="utf-8")) if path.exists() else Plan()


def changed_fields(part: Part, *without: str) -> dict[str, Any]:
    """Fields of a part of the recipe that differ from their defaults, as plain data."""
    return part.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
