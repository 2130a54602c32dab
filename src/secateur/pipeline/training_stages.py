"""The first part of the chain: data, training, and the scan of what can go."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import recipe as recipes
from secateur.console import progress, say
from secateur.data import Images, Preparation, draw, load, mislabel, normalization, split
from secateur.models.build import build_network
from secateur.pruning.channels import Prunable
from secateur.pruning.masks import Masks
from secateur.pruning.plan import Plan
from secateur.pruning.rounds import Start, linear_layers, start_of
from secateur.pruning.surgery import rebuild
from secateur.recipe import Recipe
from secateur.sensitivity.scan import ScanPoint, choose_threshold, scan_layers, scan_network
from secateur.store import Stage, Store, save_tensors, write_json
from secateur.training.trainer import train


@dataclass
class Training:
    """One recipe on one machine: data, the reference network, and how much of it can go.

    Each stage is a cached property: asking for one makes, or finds, all that it needs.

    Attributes:
        recipe: What to do.
        store: Where stages are kept.
        data_root: Folder with the data set's files, or None.
        device: Where to train and evaluate.
    """

    recipe: Recipe
    store: Store
    data_root: Path | None
    device: torch.device

    # ---- data

    @cached_property
    def data(self) -> Stage:
        """The split, and what normalizes it."""
        says: dict[str, Any] = {"data": said(self.recipe.data)}
        if self.recipe.data.name == "folder":
            says["fingerprint"] = self._source_images.fingerprint
        return self._stage("data", says, {}, self._make_data)

    def _make_data(self, folder: Path) -> None:
        config, images = self.recipe.data, self._source_images
        training, validation = split(images.labels, config.validation, config.split_seed)
        if config.images:
            training = training[draw(images.labels[training], config.images, config.split_seed)]
        mean, std = normalization(images.take(training), config.normalization)
        parts = {"training": training, "validation": validation}
        if config.label_noise:
            parts["labels"] = mislabel(
                images.labels[training], config.label_noise, len(images.classes), config.split_seed
            )
        save_tensors(folder / "split.safetensors", parts)
        write_json(
            folder / "data.json",
            {
                "name": config.name,
                "classes": images.classes,
                "shape": list(images.pixels.shape[1:]),
                "training": len(training),
                "validation": len(validation),
                "mean": mean,
                "std": std,
                "fingerprint": images.fingerprint,
            },
        )

    @cached_property
    def _source_images(self) -> Images:
        return load(self.recipe.data.name, self.data_root, train=True)

    @cached_property
    def _about_data(self) -> dict[str, Any]:
        return self.data.json("data.json")

    @cached_property
    def parts(self) -> tuple[Images, Images]:
        """Training images, labeled as they are trained on, and validation images; on the device."""
        stored = self.data.tensors("split.safetensors")
        images = self._source_images
        training, validation = (images.take(stored[part]) for part in ("training", "validation"))
        if "labels" in stored:
            training = replace(training, labels=stored["labels"])
        return training.to(self.device), validation.to(self.device)

    @cached_property
    def prepare(self) -> Preparation:
        about = self._about_data
        return Preparation(
            tuple(about["mean"]), tuple(about["std"]), self.recipe.network.resolution
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        side = self.recipe.network.resolution
        return self._about_data["shape"][0], side, side

    # ---- networks

    def fresh_network(self) -> nn.Module:
        about = self._about_data
        return build_network(
            self.recipe.network, about["shape"][0], len(about["classes"]), self.recipe.seed
        )

    def load_network(self, stage: Stage) -> nn.Module:
        """Rebuild a stage's network from spec, plan (where there is one) and weights."""
        network = self.fresh_network()
        network = rebuild(network, plan_of(stage))
        network.load_state_dict(stage.tensors("weights.safetensors"))
        return self.place(network).eval()

    def place(self, network: nn.Module) -> nn.Module:
        return network.to(device=self.device).to(memory_format=torch.channels_last)

    @property
    def _example(self) -> torch.Tensor:
        return torch.zeros(1, *self.input_shape)

    @cached_property
    def _start(self) -> Start:
        """What can be taken out of the network as it is trained."""
        return start_of(self.fresh_network(), self._example, self.recipe.prune.linear)

    @property
    def _prunable(self) -> Prunable:
        return self._start.prunable

    @cached_property
    def _sparse_layers(self) -> list[str]:
        """Linear layers that lose single weights."""
        return linear_layers(self.fresh_network()) if self.recipe.prune.linear == "weights" else []

    # ---- train

    @cached_property
    def train(self) -> Stage:
        """The reference network."""
        says = {
            "network": said(self.recipe.network),
            "train": said(self.recipe.train),
            "seed": self.recipe.seed,
        }
        return self._stage("train", says, {"data": self.data}, self._make_train)

    def _make_train(self, folder: Path) -> None:
        network = self.place(self.fresh_network())
        self._train_into(folder, network, self.recipe.train, None, "train")

    def _train_into(
        self,
        folder: Path,
        network: nn.Module,
        config: recipes.Train,
        masks: Masks | None,
        label: str,
        distill: float = 0.0,
    ) -> nn.Module:
        checkpoint = folder / "checkpoint.safetensors"
        training, validation = self.parts
        kept, history = train(
            network,
            training,
            validation,
            self.prepare,
            config,
            seed=self.recipe.seed,
            checkpoint=checkpoint,
            masks=masks.tensors if masks else None,
            teacher=self.load_network(self.train) if distill else None,
            distill=distill,
            label=label,
        )
        save_tensors(folder / "weights.safetensors", kept.state_dict())
        write_json(folder / "history.json", [asdict(epoch) for epoch in history])
        checkpoint.unlink()
        return kept

    # ---- scan

    @cached_property
    def scan(self) -> Stage:
        """Accuracy on validation against the fraction pruned."""
        config = self.recipe.scan
        # Tolerance and a threshold by hand only read the curve: changing them scans nothing anew.
        says = {
            "scan": said(config, "tolerance", "threshold"),
            "prune": {"linear": self.recipe.prune.linear},
            "engine": 2,  # groups of channels that hang together, where the first took layers
        }
        return self._stage("scan", says, {"train": self.train}, self._make_scan)

    def _make_scan(self, folder: Path) -> None:
        config, network, prunable = self.recipe.scan, self.load_network(self.train), self._prunable
        _, validation = self.parts
        some, weights = validation.spread(config.images), self._sparse_layers
        layers = len(prunable.groups) + len(weights)
        points = len(config.fractions) + layers * len(config.layer_fractions) + 2
        with progress("scan", points) as tick:
            whole = scan_network(
                network, prunable, weights, config.fractions, validation, self.prepare, tick.advance
            )
            single = scan_layers(
                network, prunable, weights, config.layer_fractions, some, self.prepare, tick.advance
            )
        write_json(
            folder / "scan.json",
            {
                "network": [point.to_dict() for point in whole],
                "layers": [point.to_dict() for point in single],
                "protected": [asdict(layer) for layer in prunable.protected],
            },
        )

    def sensitivity_curves(self) -> dict[str, list[tuple[float, float]]]:
        """For each scanned layer its points (fraction removed, accuracy lost on validation)."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for layer in self.scan.json("scan.json")["layers"]:
            point = ScanPoint.from_dict(layer)
            curves.setdefault(point.layer, []).append((point.fraction, point.drop.value))
        return curves

    @property
    def threshold(self) -> float:
        """The fraction to prune that the scan, or the recipe by hand, settled on."""
        config = self.recipe.scan
        if config.threshold is not None:
            return config.threshold
        points = [ScanPoint.from_dict(point) for point in self.scan.json("scan.json")["network"]]
        return choose_threshold(points, config.tolerance)

    # ---- shared

    def _stage(
        self, name: str, says: dict[str, Any], upstream: dict[str, Stage], make: Any
    ) -> Stage:
        stage = self.store.stage(name, says, upstream, make)
        if stage.fresh:
            say(f"{name}: done in {stage.manifest['seconds']:.1f} s  {stage.folder}")
        else:
            say(f"{name}: in place  {stage.folder}")
        return stage


def plan_of(stage: Stage) -> Plan:
    """All that left the trained network up to ``stage``."""
    path = stage.folder / "plan.json"
    return Plan.from_json(path.read_text(encoding="utf-8")) if path.exists() else Plan()


def said(part: recipes.Part, *without: str) -> dict[str, Any]:
    """What a part of the recipe says beyond its defaults, as plain data."""
    return part.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
