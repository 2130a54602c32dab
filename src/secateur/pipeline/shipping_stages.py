"""The end of the chain: files, float, quantized and packed, and what is measured of them."""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch

from secateur.artifact.container import VERSION
from secateur.artifact.packing import pack, unpack
from secateur.benchmarking.cost import macs, nonzero_parameters, parameters
from secateur.benchmarking.measurement import measure
from secateur.console import progress
from secateur.data import Images, batches, load
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import Graph, read_model, write_model
from secateur.pipeline.pruning_stages import Pruning
from secateur.pipeline.training_stages import said
from secateur.pruning.masks import Masks
from secateur.quantization.aware import Trainable
from secateur.quantization.bits import BitPoint, scan_bits
from secateur.quantization.parity import compare
from secateur.quantization.qdq import read_scheme, write_qdq
from secateur.quantization.quantize import quantize, weight_rule
from secateur.quantization.rate import priced_layers
from secateur.quantization.scheme import Rules, Scheme, make_scheme, weighted_nodes
from secateur.quantization.simulate import Simulated
from secateur.quantization.validation import Judge
from secateur.runtimes import open_file
from secateur.statistics import mcnemar, paired_drop, proportion, spread
from secateur.store import Stage, save_tensors, write_bytes, write_json
from secateur.training.evaluation import BATCH

Variant = Literal["reference", "pruned", "quantized"]
VARIANTS: tuple[Variant, ...] = ("reference", "pruned", "quantized")


class Pipeline(Pruning):
    """The whole chain of one recipe on one machine."""

    # ---- export, quantize

    @cached_property
    def export(self) -> Stage:
        """The float networks as ONNX files."""
        upstream = {"train": self.train, "remove": self.remove}
        return self._stage("export", self._says_export, upstream, self._make_export)

    @property
    def _says_export(self) -> dict[str, Any]:
        return {
            "network": said(self.recipe.network),
            "metadata": self.metadata,
            "engine": 3,  # shuffles folded, repeated pixels too
        }

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
            "quantize": said(config, "epochs", "learning_rate"),
            "seed": self.recipe.seed,
            "engine": 3,  # scales of few digits
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
        images = self.prepare(training.take(chosen.to(self.device)).pixels[:]).contiguous().cpu()
        if config.bits == "mixed":
            scanned = self.scan_bits.json("scan_bits.json")
            points = [BitPoint.from_dict(point) for point in scanned]
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
            "train": said(self.recipe.train),
            "seed": self.recipe.seed,
        }
        upstream = {"data": self.data, "quantize": self.quantize}
        return self._stage("quantize-train", says, upstream, self._make_quantize_train)

    def _make_quantize_train(self, folder: Path) -> None:
        config, model = self.recipe.quantize, read_model(self.quantize.folder / "float.onnx")
        ranges = {k: tuple(v) for k, v in self.quantize.json("ranges.json").items()}
        bits = self.quantize.json("bits.json")
        rules = {name: weight_rule(config, width) for name, width in bits.items()}
        network = self._trainable(model, make_scheme(model, ranges, rules), rules).to(self.device)
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

    def _trainable(self, model: onnx.ModelProto, scheme: Scheme, rules: Rules) -> Trainable:
        """The network to train: from the real weights, or from integers that bits were saved on."""
        if not self.recipe.quantize.price:
            return Trainable(model, scheme, rules)
        found = read_scheme(model, self.quantize.folder / "quantized.onnx")
        return Trainable(model, found, rules, priced_layers(Graph(model)))

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
        return self._stage("bench", {"bench": said(self.recipe.bench)}, upstream, self._make_bench)

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

    # ---- pack

    @cached_property
    def pack(self) -> Stage:
        """The quantized file and all that is known of it, in one small file."""
        upstream = {"bench": self.bench}
        return self._stage("pack", {"format": VERSION}, upstream, self._make_pack)

    @property
    def packed_file(self) -> Path:
        """The one small file."""
        return self.pack.folder / "net.sec"

    def _make_pack(self, folder: Path) -> None:
        write_bytes(folder / "net.sec", pack(self.file("quantized").read_bytes(), self.provenance))
        start = time.perf_counter()
        unpack((folder / "net.sec").read_bytes())
        seconds = time.perf_counter() - start
        size = (folder / "net.sec").stat().st_size
        write_json(folder / "pack.json", {"size_bytes": size, "unpack_seconds": seconds})

    @property
    def provenance(self) -> dict[str, Any]:
        """What a packed file says of where it comes from, and of how good it is."""
        measured, manifest = self.bench.json("bench.json"), self.bench.manifest
        right = {v: r.numpy() for v, r in self.bench.tensors("right.safetensors").items()}
        ours, n = right["quantized"], len(right["quantized"])
        times = np.array(measured["variants"]["quantized"]["latencies_ms"])
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=True),
            "recipe_id": self.recipe.id,
            "seed": self.recipe.seed,
            "data": {
                "name": self.recipe.data.name,
                "training_sha256": self._about_data["fingerprint"],
                "test_sha256": measured["test_fingerprint"],
            },
            "accuracy": {
                "correct": int(ours.sum()),
                "images": n,
                "top1": list(proportion(int(ours.sum()), n)),
                "drop": list(paired_drop(right["reference"], ours)),
                "mcnemar_p": mcnemar(right["reference"], ours),
            },
            "latency_ms": [*spread(times), len(times)],
            "runtime": measured["runtime"],
            "threads": measured["threads"],
            **{key: manifest[key] for key in ("processor", "versions", "commit")},
        }
