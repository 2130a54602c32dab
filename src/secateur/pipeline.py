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
from secateur.evaluate import leave_gradients
from secateur.export import export_onnx
from secateur.measure import measure
from secateur.networks import build_network
from secateur.onnx_graph import Graph, read_model, write_model
from secateur.pruning.channels import Prunable
from secateur.pruning.dead import plan_dead
from secateur.pruning.masks import Masks, weight_masks
from secateur.pruning.plan import Plan
from secateur.pruning.reinit import reinitialize
from secateur.pruning.rounds import Start, linear_layers, plan_round, start_of
from secateur.pruning.schedule import fraction_after
from secateur.pruning.surgery import rebuild, remove, shrink_state
from secateur.quantization.aware import Trainable
from secateur.quantization.bits import BATCH, BitPoint, scan_bits
from secateur.quantization.parity import compare
from secateur.quantization.qdq import read_scheme, write_qdq
from secateur.quantization.quantize import Judge, quantize, weight_rule
from secateur.quantization.scheme import make_scheme, weighted_nodes
from secateur.quantization.simulate import Simulated
from secateur.recipe import Recipe
from secateur.runtimes import open_file
from secateur.sensitivity import ScanPoint, choose_threshold, scan_layers, scan_network
from secateur.store import Stage, Store, save_tensors, write_json, write_text
from secateur.train import train

Variant = Literal["reference", "pruned", "quantized"]
VARIANTS: tuple[Variant, ...] = ("reference", "pruned", "quantized")

GRADIENT_IMAGES = 2000
"""Training images whose mean gradient first-order importance uses."""


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
    def parts(self) -> tuple[Images, Images]:
        """Training and validation images, on the device."""
        indices = self.data.tensors("split.safetensors")
        images = self._source_images
        return (
            images.take(indices["training"]).to(self.device),
            images.take(indices["validation"]).to(self.device),
        )

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
        network = rebuild(network, _plan_of(stage))
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
            "network": _said(self.recipe.network),
            "train": _said(self.recipe.train),
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
            "scan": _said(config, "tolerance", "threshold"),
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
        for said in self.scan.json("scan.json")["layers"]:
            point = ScanPoint.from_dict(said)
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

    # ---- prune

    @property
    def _fraction(self) -> float:
        config = self.recipe.prune
        if config.target is not None:
            return 1 - config.target
        return self.threshold if config.fraction == "scan" else config.fraction

    @cached_property
    def rounds(self) -> list[Stage]:
        """Each round of pruning and retraining."""
        config, done, before = self.recipe.prune, [], self.train
        for index in range(1, config.rounds + 1):
            fraction = fraction_after(index, config.rounds, self._fraction, config.schedule)
            says = {
                "fraction": fraction,
                "prune": _said(config, "fraction", "rounds", "schedule", "target"),
                "train": _said(self.recipe.train),
                "seed": self.recipe.seed,
                "engine": 2,  # removes in every round; the first one masked and removed at the end
            }
            if config.objective == "latency":
                says["threads"] = self.recipe.bench.threads
            upstream = {"before": before}
            if config.scope == "sensitivity":
                upstream["scan"] = self.scan
            stage = self._stage(
                f"prune-{index}",
                says,
                upstream,
                lambda folder, i=index, f=fraction, b=before: self._make_round(folder, i, f, b),
            )
            done.append(stage)
            before = stage
        return done

    def _make_round(self, folder: Path, index: int, fraction: float, before: Stage) -> None:
        config, network = self.recipe.prune, self.load_network(before)
        plan = self._plan_round(network, fraction, index)
        smaller = remove(network, plan)
        masks = self._mask_weights(smaller, plan, fraction, before)
        masks.apply_(smaller)
        if config.retrain == "reinit":
            smaller = reinitialize(smaller, masks, self.recipe.seed + index)
        so_far = _plan_of(before).then(plan)
        write_text(folder / "plan.json", so_far.to_json())
        label = f"prune {index}/{config.rounds} to {fraction:.3f}"
        self._train_into(folder, self.place(smaller), self._retraining, masks, label)
        masks.save(folder / "masks.safetensors")

    def _plan_round(self, network: nn.Module, fraction: float, index: int) -> Plan:
        config = self.recipe.prune
        if config.importance == "taylor":
            training, _ = self.parts
            leave_gradients(network, training.spread(GRADIENT_IMAGES), self.prepare)
        curves = self.sensitivity_curves() if config.scope == "sensitivity" else None
        return plan_round(
            network, self._example, self._start, config, fraction,
            self.recipe.seed + index, curves, self.recipe.bench.threads,
        )  # fmt: skip

    def _mask_weights(
        self, network: nn.Module, plan: Plan, fraction: float, before: Stage
    ) -> Masks:
        """Masks of single weights in linear layers, those of the round before included."""
        path = before.folder / "masks.safetensors"
        previous = None
        if path.exists():
            previous = Masks(shrink_state(Masks.load(path).tensors, plan))
        return weight_masks(network, self._sparse_layers, fraction, previous)

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
        """The network without what its last round left dead."""
        return self._stage("remove", {"engine": 2}, {"prune": self.rounds[-1]}, self._make_remove)

    def _make_remove(self, folder: Path) -> None:
        last = self.rounds[-1]
        network = self.load_network(last).cpu()
        dead = plan_dead(network, self._example)
        smaller = remove(network, dead)
        write_text(folder / "plan.json", _plan_of(last).then(dead).to_json())
        save_tensors(folder / "weights.safetensors", smaller.state_dict())

    # ---- export, quantize

    @cached_property
    def export(self) -> Stage:
        """The float networks as ONNX files."""
        upstream = {"train": self.train, "remove": self.remove}
        return self._stage("export", self._says_export, upstream, self._make_export)

    @property
    def _says_export(self) -> dict[str, Any]:
        return {"network": _said(self.recipe.network), "metadata": self.metadata}

    @property
    def metadata(self) -> dict[str, str]:
        """What a user of an exported file must know."""
        about = self._about_data
        return {key: json.dumps(about[key]) for key in ("classes", "mean", "std", "name")} | {
            "resolution": str(self.recipe.network.resolution)
        }

    def _make_export(self, folder: Path) -> None:
        for variant, stage in (("reference", self.train), ("pruned", self.remove)):
            network = self.load_network(stage).cpu()
            export_onnx(network, self.input_shape, folder / f"{variant}.onnx", self.metadata)

    @cached_property
    def scan_bits(self) -> Stage:
        """Loss on validation against the bits of each layer's weight."""
        config = self.recipe.quantize
        says = {
            "images": config.scan_images,
            "per_channel": config.per_channel,
            "saturation_free": config.saturation_free,
        }
        upstream = {"data": self.data, "export": self.export}
        return self._stage("scan-bits", says, upstream, self._make_scan_bits)

    def _make_scan_bits(self, folder: Path) -> None:
        model = read_model(self.export.folder / "pruned.onnx")
        judge, rule = self._judge, weight_rule(self.recipe.quantize)
        batches = -(-len(judge.images) // BATCH)
        with progress("scan bits", batches * len(weighted_nodes(Graph(model)))) as tick:
            points = scan_bits(model, judge.images, judge.prepare, rule=rule, advance=tick.advance)
        write_json(folder / "scan_bits.json", [point.to_dict() for point in points])

    @property
    def _judge(self) -> Judge:
        """The validation images by which quantization chooses."""
        _, validation = self.parts
        some = validation.spread(self.recipe.quantize.scan_images)
        return Judge(some.to(torch.device("cpu")), self.prepare)

    @cached_property
    def quantize(self) -> Stage:
        """The pruned network in int8, without training."""
        config = self.recipe.quantize
        says = {
            "quantize": _said(config, "epochs", "learning_rate"),
            "seed": self.recipe.seed,
            "engine": 2,  # free of saturation, biases corrected
        }
        upstream = {"data": self.data, "export": self.export}
        if config.bits == "mixed":
            upstream["scan_bits"] = self.scan_bits
        return self._stage("quantize", says, upstream, self._make_quantize)

    def _make_quantize(self, folder: Path) -> None:
        config, points = self.recipe.quantize, []
        training, _ = self.parts
        generator = torch.Generator().manual_seed(self.recipe.seed)
        chosen = torch.randperm(len(training), generator=generator)[: config.images]
        images = self.prepare(training.take(chosen.to(self.device)).pixels).contiguous().cpu()
        if config.bits == "mixed":
            said = self.scan_bits.json("scan_bits.json")
            points = [BitPoint.from_dict(point) for point in said]
        done = quantize(self.export.folder / "pruned.onnx", images, config, self._judge, points)
        write_model(done.model, folder / "float.onnx")
        write_json(folder / "ranges.json", done.ranges)
        write_json(folder / "bits.json", {name: rule.bits for name, rule in done.rules.items()})
        write_json(folder / "chosen.json", done.chosen)
        write_qdq(done.model, done.scheme, folder / "quantized.onnx")

    @cached_property
    def quantize_train(self) -> Stage:
        """The quantized network, trained as such."""
        config = self.recipe.quantize
        says = {
            "epochs": config.epochs,
            "learning_rate": config.learning_rate,
            "train": _said(self.recipe.train),
            "seed": self.recipe.seed,
        }
        upstream = {"data": self.data, "quantize": self.quantize}
        return self._stage("quantize-train", says, upstream, self._make_quantize_train)

    def _make_quantize_train(self, folder: Path) -> None:
        config, model = self.recipe.quantize, read_model(self.quantize.folder / "float.onnx")
        ranges = {k: tuple(v) for k, v in self.quantize.json("ranges.json").items()}
        bits = self.quantize.json("bits.json")
        rules = {name: weight_rule(config, width) for name, width in bits.items()}
        network = Trainable(model, make_scheme(model, ranges, rules), rules).to(self.device)
        schedule = self.recipe.train.model_copy(
            update={
                "epochs": config.epochs,
                "learning_rate": config.learning_rate,
                "schedule": "one-cycle",
            }
        )
        masks = Masks(network.masks())
        trained = self._train_into(folder, network, schedule, masks, "quantize-train")
        assert isinstance(trained, Trainable)
        write_qdq(model, trained.learned(), folder / "quantized.onnx")

    # ---- bench

    def file(self, variant: Variant) -> Path:
        """The file that ships for ``variant``."""
        stage = self._quantized if variant == "quantized" else self.export
        return stage.folder / f"{variant}.onnx"

    @property
    def _quantized(self) -> Stage:
        return self.quantize_train if self.recipe.quantize.epochs else self.quantize

    @cached_property
    def bench(self) -> Stage:
        """Every number of the three files, on this machine."""
        upstream = {"export": self.export, "quantize": self._quantized}
        return self._stage("bench", {"bench": _said(self.recipe.bench)}, upstream, self._make_bench)

    def _make_bench(self, folder: Path) -> None:
        test = load(self.recipe.data.name, self.data_root, train=False)
        files: dict[str, Path] = {variant: self.file(variant) for variant in VARIANTS}
        measured, right = measure(files, test, self.prepare, self.recipe.bench)
        measured["parity"] = self._parity(test)
        for variant in VARIANTS:
            network = self.load_network(self.train if variant == "reference" else self.remove).cpu()
            measured["variants"][variant] |= {
                "parameters": parameters(network),
                "nonzero_parameters": nonzero_parameters(network),
                "macs": macs(network, self.input_shape),
            }
        save_tensors(
            folder / "right.safetensors", {v: torch.from_numpy(r) for v, r in right.items()}
        )
        write_json(folder / "bench.json", measured)

    def _parity(self, test: Images) -> dict[str, Any]:
        """How far the quantized file decides as its simulation in PyTorch."""
        path, graph = self.file("quantized"), read_model(self.quantize.folder / "float.onnx")
        simulated = Simulated(graph, read_scheme(graph, path))
        runtime = open_file(path, self.recipe.bench.threads, self.recipe.bench.runtime)
        return compare(runtime, simulated, batches(test, self.prepare, BATCH)).to_dict()

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


def _plan_of(stage: Stage) -> Plan:
    """All that left the trained network up to ``stage``."""
    path = stage.folder / "plan.json"
    return Plan.from_json(path.read_text(encoding="utf-8")) if path.exists() else Plan()


def _said(part: recipes.Part, *without: str) -> dict[str, Any]:
    """What a part of the recipe says beyond its defaults, as plain data."""
    return part.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
