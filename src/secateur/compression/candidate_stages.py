"""Makes and measures candidates; each is a stage in the store, so that runs can resume."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from secateur import recipe
from secateur.artifact.packing import pack
from secateur.benchmarking.layer_timer import LayerTimer
from secateur.benchmarking.network_timer import NetworkTimer
from secateur.benchmarking.timing import latencies
from secateur.compression.candidate import Candidate, Measured, Merging, Removal
from secateur.compression.changes import Change, ChannelRemoval, LayerMerging
from secateur.compression.onnx_network import OnnxNetwork, count
from secateur.compression.problem import Problem
from secateur.compression.settings import Settings
from secateur.compression.tuning import Hopeless, fine_tune
from secateur.compression.verdict import Right
from secateur.data import Images, batches
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import Graph, write_model
from secateur.pruning.masks import Masks
from secateur.pruning.merging.depth import FIT_STEPS, choose_depth
from secateur.pruning.merging.rewrite import to_json
from secateur.pruning.merging.segment_fit import Fit
from secateur.pruning.plan import Plan
from secateur.pruning.removal import plan_removal
from secateur.quantization.aware import Trainable
from secateur.quantization.importing import import_onnx
from secateur.quantization.post_training import Quantized
from secateur.quantization.qdq import write_qdq
from secateur.quantization.quantize import quantize_imported, require_simulated
from secateur.quantization.rate import priced_layers
from secateur.quantization.scheme import Scheme
from secateur.quantization.validation import ValidationSet
from secateur.runtimes import Runtime, open_file
from secateur.store import Stage, Store, save_tensors, write_bytes, write_json, write_text
from secateur.training.evaluation import correct, leave_gradients, scorer
from secateur.training.trainer import Epoch

GRADIENT_IMAGES = 2000
"""Number of training images whose mean gradient is used by first-order importance."""

MERGING_IMAGES = 500
"""Number of training images for the fits of segments, and of validation images for their losses."""

REFERENCE = "reference"
"""Name of the given network among what is timed."""


def evaluate(runtime: Runtime, images: Images, problem: Problem, part: str) -> Right:
    """Whether a file classifies each image of ``validation`` or ``test`` correctly: (n,)."""
    if problem.loop.evaluate is not None:
        return problem.loop.right(scorer(runtime), part)
    return correct(scorer(runtime), images.to(torch.device("cpu")), problem.prepare)


class Stages:
    """The stages of one compression.

    Args:
        problem: The network and images.
        settings: Goal and limits.
        store: Keeps the stages.
    """

    def __init__(self, problem: Problem, settings: Settings, store: Store) -> None:
        self.problem, self.settings, self.store = problem, settings, store

    # ---- the given network

    @cached_property
    def reference(self) -> Stage:
        """The given network as a float file, and its decisions on validation."""
        key = {**self.problem.identity, "metadata": self.metadata}
        return self.store.stage("reference", key, {}, self._make_reference)

    def _make_reference(self, folder: Path) -> None:
        path = folder / "net.onnx"
        self._export(self.problem.network, path)
        right = evaluate(self._open(path), self.problem.validation, self.problem, "validation")
        save_tensors(folder / "right.safetensors", {"right": torch.from_numpy(right)})
        counted, elements = count(self.problem.network, self.problem.input_shape)
        facts = {"macs": counted, "parameters": elements, "onnx_bytes": path.stat().st_size}
        write_json(folder / "reference.json", facts)

    def _export(self, network: nn.Module, path: Path) -> None:
        """Write a network as a float file; the graph of an ONNX file is kept."""
        if not isinstance(network, OnnxNetwork):
            export_onnx(network, self.problem.input_shape, path, self.metadata)
            return
        graph = onnx.ModelProto()
        graph.CopyFrom(network.graph)
        onnx.helper.set_model_props(graph, dict(sorted(self.metadata.items())))
        write_model(graph, path)

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of exported files: classes and image preparation."""
        facts = {"classes": self.problem.classes, "name": self.problem.data_name}
        described = {key: json.dumps(value) for key, value in facts.items()}
        return described | self.problem.prepare.to_metadata()

    @cached_property
    def reference_right(self) -> Right:
        """Whether the given network classifies each validation image correctly."""
        return self.reference.tensors("right.safetensors")["right"].numpy()

    @cached_property
    def reference_facts(self) -> dict[str, int]:
        """MACs, parameters and bytes of the given network."""
        return self.reference.json("reference.json")

    def _open(self, path: Path) -> Runtime:
        return open_file(path, self.settings.bench.threads, self.settings.bench.runtime)

    # ---- pruning and fine-tuning

    def tuned(self, candidate: Candidate, hopeless: Hopeless | None = None) -> Stage:
        """The pruned and fine-tuned network of a candidate.

        Candidates with the same plan share this stage.
        """
        change = self.change(candidate)
        assert change is not None
        key = {
            **change.key,
            "tune": self.settings.tune.model_dump(mode="json", exclude_defaults=True),
            "epochs": candidate.epochs,
            "seed": self.settings.seed,
        }

        def make(folder: Path) -> None:
            self._make_tuned(folder, change, candidate, hopeless)

        return self.store.stage("tune", key, {"reference": self.reference}, make)

    def change(self, candidate: Candidate) -> Change | None:
        """What a candidate changes in the network, or None."""
        if candidate.merging is not None:
            return LayerMerging(self.merges(candidate.merging), self.problem.example, self._fit)
        return None if candidate.removal is None else ChannelRemoval(self.plan(candidate.removal))

    def _make_tuned(
        self, folder: Path, change: Change, candidate: Candidate, hopeless: Hopeless | None
    ) -> None:
        network, history, reason = change.start(self.problem.network), list[Epoch](), ""
        if candidate.epochs:
            network, history, reason = fine_tune(
                self.problem, self.settings, self.place(network),
                self.settings.tune.to_train(network, candidate.epochs), folder,
                label=f"fine-tune at {candidate.reduction}", hopeless=hopeless,
            )  # fmt: skip
        network = change.finish(network)
        save_tensors(folder / "weights.safetensors", network.state_dict())
        write_json(folder / "history.json", [asdict(epoch) for epoch in history])
        write_json(folder / "tune.json", {"given_up": reason})

    def plan(self, removal: Removal) -> Plan:
        """Plan the channels to remove.

        Raises:
            NetworkError: The network cannot be traced, or the cost cannot be reached.
        """
        key = {"removal": removal.model_dump(mode="json"), "round_to": self.settings.round_to}

        def make(folder: Path) -> None:
            write_text(folder / "plan.json", self._make_plan(removal).to_json())

        stage = self.store.stage("plan", key, {"reference": self.reference}, make)
        return Plan.from_json((stage.folder / "plan.json").read_text(encoding="utf-8"))

    def _make_plan(self, removal: Removal) -> Plan:
        problem = self.problem
        if removal.method.importance == "taylor":
            images = problem.training.spread(GRADIENT_IMAGES)
            leave_gradients(problem.network, images, problem.prepare)
        return plan_removal(
            problem.network,
            problem.example,
            importance=removal.method.importance,
            scope=removal.method.scope,
            round_to=self.settings.round_to,
            objective=removal.objective,
            target=removal.kept,
        )

    def merges(self, merging: Merging) -> str:
        """Choose the layers to merge; see :func:`secateur.pruning.merging.rewrite.to_json`.

        Raises:
            NetworkError: The network cannot be traced, or the latency cannot be reached.
        """
        key = {"merging": merging.model_dump(mode="json"), "threads": self.settings.bench.threads}

        def make(folder: Path) -> None:
            write_text(folder / "merges.json", self._make_merges(merging))

        stage = self.store.stage("merges", key, {"reference": self.reference}, make)
        return (stage.folder / "merges.json").read_text(encoding="utf-8")

    def _make_merges(self, merging: Merging) -> str:
        problem, threads = self.problem, self.settings.bench.threads
        network = copy.deepcopy(problem.network).cpu()
        timer = LayerTimer("int8", threads)
        measured = problem.validation.spread(MERGING_IMAGES).to(torch.device("cpu"))
        try:
            choice = choose_depth(
                network, problem.example, self._fit, measured, problem.prepare, merging.kept, timer,
                NetworkTimer(problem.input_shape, "int8", threads),
            )  # fmt: skip
        finally:
            timer.save()
        return to_json(choice.traced, choice.segments)

    @property
    def _fit(self) -> Fit:
        some = self.problem.training.spread(MERGING_IMAGES).to(torch.device("cpu"))
        return Fit(some, self.problem.prepare, FIT_STEPS)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the training device."""
        return network.to(device=self.problem.device).to(memory_format=torch.channels_last)

    def network(self, candidate: Candidate) -> nn.Module:
        """The float network of a candidate, on the CPU, in inference mode."""
        network, change = copy.deepcopy(self.problem.network).cpu(), self.change(candidate)
        if change is not None:
            network = change.rebuild(network)
            network.load_state_dict(self.tuned(candidate).tensors("weights.safetensors"))
        return network.eval()

    # ---- files

    def measured(self, candidate: Candidate, hopeless: Hopeless | None = None) -> Measured:
        """Make a candidate's files and measure them, or read them from the store."""
        upstream, seconds = {"reference": self.reference}, 0.0
        if candidate.reduction:
            upstream["tune"] = tuned = self.tuned(candidate, hopeless)
            seconds = tuned.manifest["seconds"]
            given_up = tuned.json("tune.json")["given_up"]
            if given_up:
                counted = count(self.network(candidate), self.problem.input_shape)
                return Measured.without_files(candidate, given_up, *counted, seconds)
        config = candidate.quantize
        key = {
            "quantize": None if config is None else config.model_dump(mode="json"),
            "bench": self.settings.bench.model_dump(mode="json"),
            "seed": self.settings.seed,
        }
        stage = self.store.stage(
            "candidate", key, upstream, lambda folder: self._make_files(folder, candidate)
        )
        facts, never = stage.json("candidate.json"), np.empty(0)
        untimed = Measured(
            candidate,
            stage.folder,
            stage.tensors("right.safetensors")["right"].numpy(),
            self.reference_right,
            facts["onnx_bytes"],
            facts["packed_bytes"],
            never,
            never,
            facts["macs"],
            facts["parameters"],
            seconds + stage.manifest["seconds"],
        )
        timing = self._timing([untimed])
        seconds = untimed.seconds + timing.manifest["seconds"]
        return replace(_with_times(untimed, timing), seconds=seconds)

    def timed(self, finished: Sequence[Measured]) -> list[Measured]:
        """Time candidates that have files, and the given network, in turns.

        Only times of the same turns can be compared: the speed of a machine drifts.
        """
        timing = self._timing(finished)
        return [_with_times(one, timing) for one in finished]

    def _timing(self, finished: Sequence[Measured]) -> Stage:
        """The milliseconds of candidates and of the given network, in the same turns."""
        bench, folders = self.settings.bench, [one.folder for one in finished if one.folder]
        files = {folder.name: folder / "net.onnx" for folder in folders}

        def make(folder: Path) -> None:
            paths = {REFERENCE: self.reference_file} | files
            runtimes = {name: self._open(path) for name, path in paths.items()}
            image = next(batches(self.problem.validation, self.problem.prepare, 1))
            samples = latencies(runtimes, image, bench.warmup, bench.repeats)
            rounded = {name: values.round(5).tolist() for name, values in samples.items()}
            write_json(folder / "timing.json", rounded)

        key = {"candidates": [*files], "bench": bench.model_dump(mode="json")}
        return self.store.stage("timing", key, {"reference": self.reference}, make)

    def _make_files(self, folder: Path, candidate: Candidate) -> None:
        network, path = self.network(candidate), folder / "net.onnx"
        self._export(network, path)
        if candidate.quantize is not None:
            self._quantize(path, candidate.quantize, folder)
        packed = pack(path.read_bytes(), self.provenance(candidate))
        write_bytes(folder / "net.sec", packed)
        right = evaluate(self._open(path), self.problem.validation, self.problem, "validation")
        save_tensors(folder / "right.safetensors", {"right": torch.from_numpy(right)})
        counted, elements = count(network, self.problem.input_shape)
        facts: dict[str, Any] = {
            "onnx_bytes": path.stat().st_size,
            "packed_bytes": len(packed),
            "macs": counted,
            "parameters": elements,
        }
        write_json(folder / "candidate.json", facts)

    @property
    def reference_file(self) -> Path:
        """The given network as a float ONNX file."""
        return self.reference.folder / "net.onnx"

    def _quantize(self, path: Path, config: recipe.Quantize, folder: Path) -> None:
        """Quantize a float file in place; checkpoints of training are written to ``folder``."""
        problem = self.problem
        generator = torch.Generator().manual_seed(self.settings.seed)
        chosen = torch.randperm(len(problem.training), generator=generator)[: config.images]
        images = problem.training.take(chosen.to(problem.device))
        some = problem.validation.spread(config.scan_images).to(torch.device("cpu"))
        prepared = problem.prepare(images.pixels[:]).contiguous().cpu()
        graph = import_onnx(path, prepared[:2].numpy())
        if config.epochs:
            require_simulated(graph, prepared[:1])
        done = quantize_imported(graph, prepared, config, ValidationSet(some, problem.prepare))
        scheme = self._trained(done, config, folder) if config.epochs else done.scheme
        write_qdq(done.model, scheme, path)

    def _trained(self, done: Quantized, config: recipe.Quantize, folder: Path) -> Scheme:
        """Train the weights and scales of a quantized graph; see ``quantization.aware``."""
        priced = priced_layers(Graph(done.model)) if config.price else ()
        rounded = Trainable(done.model, done.scheme, done.rules, priced)
        schedule = self.settings.tune.to_train(self.problem.network, config.epochs)
        schedule = schedule.model_copy(update={"learning_rate": config.learning_rate})
        network, _, _ = fine_tune(
            self.problem, self.settings, self.place(rounded), schedule, folder,
            label="train with rounding", masks=Masks(rounded.masks()),
        )  # fmt: skip
        assert isinstance(network, Trainable)
        return network.learned()

    def provenance(self, candidate: Candidate) -> dict[str, Any]:
        """Provenance stored in a packed file."""
        from secateur import environment

        return {
            "network": self.problem.name,
            "data": {"name": self.problem.data_name},
            "candidate": candidate.model_dump(mode="json", exclude_defaults=True),
            "versions": environment.versions(),
            "commit": environment.commit(),
        }


def _with_times(measured: Measured, timing: Stage) -> Measured:
    """A candidate with its times, and those of the given network, of a timing."""
    assert measured.folder is not None
    samples = timing.json("timing.json")
    return replace(
        measured,
        latencies_ms=np.array(samples[measured.folder.name]),
        reference_latencies_ms=np.array(samples[REFERENCE]),
    )
