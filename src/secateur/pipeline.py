"""The chain: each stage a function of its part of the recipe and of the stages before it.

    data -> train -> scan -> prune-1 .. prune-R -> remove -> export -> quantize -> bench

Quantization reads the exported float graph, because the tensors that get rounded are those of the
graph that ships. The test images are read by ``bench`` alone, from the files that ship.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from secateur import recipe as recipes
from secateur.console import progress, say
from secateur.cost import macs, nonzero_parameters, parameters
from secateur.data import Images, Preparation, batches, load, normalization, split
from secateur.evaluate import correctness
from secateur.export import export_onnx
from secateur.measure import measure
from secateur.networks import build_network
from secateur.pruning.channels import Prunable, find_prunable
from secateur.pruning.masks import Masks, make_masks
from secateur.pruning.reinit import reinitialize
from secateur.pruning.schedule import fraction_after
from secateur.pruning.surgery import Plan, plan_removal, rebuild, remove
from secateur.quantization.calibrate import calibrate
from secateur.quantization.qdq import quantize_onnx
from secateur.recipe import Recipe
from secateur.sensitivity import ScanPoint, choose_threshold, scan_layers, scan_network
from secateur.store import Stage, Store, save_tensors, write_json
from secateur.train import train

Variant = Literal["reference", "pruned", "quantized"]
VARIANTS: tuple[Variant, ...] = ("reference", "pruned", "quantized")


@dataclass
class Pipeline:
    """One recipe on one machine.

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
        says: dict[str, Any] = {"data": _said(self.recipe.data)}
        if self.recipe.data.name == "folder":
            says["fingerprint"] = self._source_images.fingerprint
        return self._stage("data", says, {}, self._make_data)

    def _make_data(self, folder: Path) -> None:
        config, images = self.recipe.data, self._source_images
        training, validation = split(images.labels, config.validation, config.split_seed)
        mean, std = normalization(images.take(training), config.normalization)
        save_tensors(folder / "split.safetensors", {"training": training, "validation": validation})
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
    def _parts(self) -> tuple[Images, Images]:
        """Training and validation images, on the device."""
        indices = self.data.tensors("split.safetensors")
        images = self._source_images
        return (
            images.take(indices["training"]).to(self.device),
            images.take(indices["validation"]).to(self.device),
        )

    @cached_property
    def _prepare(self) -> Preparation:
        about = self._about_data
        return Preparation(
            tuple(about["mean"]), tuple(about["std"]), self.recipe.network.resolution
        )

    @property
    def _input_shape(self) -> tuple[int, int, int]:
        side = self.recipe.network.resolution
        return self._about_data["shape"][0], side, side

    # ---- networks

    def _fresh_network(self) -> nn.Module:
        about = self._about_data
        return build_network(
            self.recipe.network, about["shape"][0], len(about["classes"]), self.recipe.seed
        )

    def _load(self, stage: Stage) -> nn.Module:
        """Rebuild a stage's network from spec, plan (where there is one) and weights."""
        network = self._fresh_network()
        if (stage.folder / "plan.json").exists():
            plan = Plan.from_json((stage.folder / "plan.json").read_text(encoding="utf-8"))
            network = rebuild(network, plan)
        network.load_state_dict(stage.tensors("weights.safetensors"))
        return self._place(network).eval()

    def _place(self, network: nn.Module) -> nn.Module:
        return network.to(device=self.device).to(memory_format=torch.channels_last)

    @cached_property
    def _prunable(self) -> Prunable:
        return find_prunable(self._fresh_network(), torch.zeros(1, *self._input_shape))

    # ---- train

    @cached_property
    def train(self) -> Stage:
        """The reference network."""
        says = {
            "network": _said(self.recipe.network),
            "train": _said(self.recipe.train),
            "seed": self.recipe.seed,
        }
        return self._stage("train", says, {"data": self.data}, self._make_train)

    def _make_train(self, folder: Path) -> None:
        network = self._place(self._fresh_network())
        self._train_into(folder, network, self.recipe.train, None, "train")

    def _train_into(
        self,
        folder: Path,
        network: nn.Module,
        config: recipes.Train,
        masks: Masks | None,
        label: str,
    ) -> None:
        checkpoint = folder / "checkpoint.safetensors"
        training, validation = self._parts
        kept, history = train(
            network,
            training,
            validation,
            self._prepare,
            config,
            seed=self.recipe.seed,
            checkpoint=checkpoint,
            masks=masks.tensors if masks else None,
            label=label,
        )
        save_tensors(folder / "weights.safetensors", kept.state_dict())
        write_json(folder / "history.json", [asdict(epoch) for epoch in history])
        checkpoint.unlink()

    # ---- scan

    @cached_property
    def scan(self) -> Stage:
        """Accuracy on validation against the fraction pruned."""
        config = self.recipe.scan
        # Tolerance and a threshold by hand only read the curve: changing them scans nothing anew.
        says = {"scan": _said(config, "tolerance", "threshold")}
        return self._stage("scan", says, {"train": self.train}, self._make_scan)

    def _make_scan(self, folder: Path) -> None:
        config, network, prunable = self.recipe.scan, self._load(self.train), self._prunable
        _, validation = self._parts
        some = validation.spread(config.images)
        layers = len(prunable.names)
        points = len(config.fractions) + layers * len(config.layer_fractions) + 2
        with progress("scan", points) as tick:

            def evaluate_on(images: Images) -> Any:
                def evaluate(candidate: nn.Module) -> Any:
                    right = correctness(candidate, images, self._prepare)
                    tick.advance(note=f"{100 * right.mean():.2f} %")
                    return right

                return evaluate

            whole = scan_network(network, prunable, config.fractions, evaluate_on(validation))
            single = scan_layers(network, prunable, config.layer_fractions, evaluate_on(some))
        write_json(
            folder / "scan.json",
            {
                "network": [point.to_dict() for point in whole],
                "layers": [point.to_dict() for point in single],
                "protected": [asdict(layer) for layer in prunable.protected],
            },
        )

    @property
    def threshold(self) -> float:
        """The fraction to prune that the scan, or the recipe by hand, settled on."""
        config = self.recipe.scan
        if config.threshold is not None:
            return config.threshold
        points = [ScanPoint.from_dict(point) for point in self.scan.json("scan.json")["network"]]
        return choose_threshold(points, config.tolerance)

    # ---- prune

    @property
    def _fraction(self) -> float:
        fraction = self.recipe.prune.fraction
        return self.threshold if fraction == "scan" else fraction

    @cached_property
    def rounds(self) -> list[Stage]:
        """Each round of pruning and retraining."""
        config, done, before = self.recipe.prune, [], self.train
        for index in range(1, config.rounds + 1):
            fraction = fraction_after(index, config.rounds, self._fraction)
            says = {
                "fraction": fraction,
                "prune": _said(config, "fraction", "rounds"),
                "train": _said(self.recipe.train),
                "seed": self.recipe.seed,
            }
            stage = self._stage(
                f"prune-{index}",
                says,
                {"before": before},
                lambda folder, i=index, f=fraction, b=before: self._make_round(folder, i, f, b),
            )
            done.append(stage)
            before = stage
        return done

    def _make_round(self, folder: Path, index: int, fraction: float, before: Stage) -> None:
        config, network = self.recipe.prune, self._load(before)
        previous = Masks.load(before.folder / "masks.safetensors") if index > 1 else None
        masks = make_masks(network, self._prunable, fraction, config.round_to, previous)
        masks.apply_(network)
        if config.retrain == "reinit":
            network = reinitialize(network, masks, self.recipe.seed + index)
            network = self._place(network)
        label = f"prune {index}/{config.rounds} to {fraction:.3f}"
        self._train_into(folder, network, self._retraining, masks, label)
        masks.save(folder / "masks.safetensors")

    @property
    def _retraining(self) -> recipes.Train:
        config, base = self.recipe.prune, self.recipe.train
        peak = config.learning_rate or base.learning_rate
        changes: dict[str, Any] = {"epochs": config.epochs, "learning_rate": peak}
        if config.retrain == "finetune":
            changes |= {
                "schedule": "constant",
                "learning_rate": peak * config.finetune_factor,
            }
        return base.model_copy(update=changes)

    @cached_property
    def remove(self) -> Stage:
        """The physically smaller network."""
        return self._stage("remove", {}, {"prune": self.rounds[-1]}, self._make_remove)

    def _make_remove(self, folder: Path) -> None:
        last = self.rounds[-1]
        network, masks = self._load(last).cpu(), Masks.load(last.folder / "masks.safetensors")
        plan = plan_removal(network, self._prunable, masks)
        smaller = remove(network, plan)
        (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
        save_tensors(folder / "weights.safetensors", smaller.state_dict())

    # ---- export, quantize

    @cached_property
    def export(self) -> Stage:
        """The float networks as ONNX files."""
        upstream = {"train": self.train, "remove": self.remove}
        return self._stage("export", self._says_export, upstream, self._make_export)

    @property
    def _says_export(self) -> dict[str, Any]:
        return {"network": _said(self.recipe.network), "metadata": self._metadata}

    @property
    def _metadata(self) -> dict[str, str]:
        about = self._about_data
        return {key: json.dumps(about[key]) for key in ("classes", "mean", "std", "name")} | {
            "resolution": str(self.recipe.network.resolution)
        }

    def _make_export(self, folder: Path) -> None:
        for variant, stage in (("reference", self.train), ("pruned", self.remove)):
            network = self._load(stage).cpu()
            export_onnx(network, self._input_shape, folder / f"{variant}.onnx", self._metadata)

    @cached_property
    def quantize(self) -> Stage:
        """The pruned network in int8."""
        says = {"quantize": _said(self.recipe.quantize), "seed": self.recipe.seed}
        upstream = {"data": self.data, "export": self.export}
        return self._stage("quantize", says, upstream, self._make_quantize)

    def _make_quantize(self, folder: Path) -> None:
        config = self.recipe.quantize
        source = self.export.folder / "pruned.onnx"
        training, _ = self._parts
        generator = torch.Generator().manual_seed(self.recipe.seed)
        chosen = torch.randperm(len(training), generator=generator)[: config.images]
        images = training.take(chosen.to(self.device))
        ranges = calibrate(
            source, batches(images, self._prepare, 64), config.method, config.percentile
        )
        write_json(folder / "ranges.json", ranges)
        quantize_onnx(source, ranges, folder / "quantized.onnx")

    # ---- bench

    def file(self, variant: Variant) -> Path:
        """The file that ships for ``variant``."""
        stage = self.quantize if variant == "quantized" else self.export
        return stage.folder / f"{variant}.onnx"

    @cached_property
    def bench(self) -> Stage:
        """Every number of the three files, on this machine."""
        upstream = {"export": self.export, "quantize": self.quantize}
        return self._stage("bench", {"bench": _said(self.recipe.bench)}, upstream, self._make_bench)

    def _make_bench(self, folder: Path) -> None:
        test = load(self.recipe.data.name, self.data_root, train=False)
        files: dict[str, Path] = {variant: self.file(variant) for variant in VARIANTS}
        measured, right = measure(files, test, self._prepare, self.recipe.bench)
        for variant in VARIANTS:
            network = self._load(self.train if variant == "reference" else self.remove).cpu()
            measured["variants"][variant] |= {
                "parameters": parameters(network),
                "nonzero_parameters": nonzero_parameters(network),
                "macs": macs(network, self._input_shape),
            }
        save_tensors(
            folder / "right.safetensors", {v: torch.from_numpy(r) for v, r in right.items()}
        )
        write_json(folder / "bench.json", measured)

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


def _said(part: recipes.Part, *without: str) -> dict[str, Any]:
    """What a part of the recipe says beyond its defaults, as plain data."""
    return part.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
