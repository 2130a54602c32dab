"""Accuracy against pruned fraction, for criteria, scopes and retraining, with controls.

Run: python -m benchmarks pruning_grid NETWORK --data DIR [--threads 1]
     python -m benchmarks pruning_grid report

FashionMNIST at 28x28 with each network's own strides, the geometry of the published study. A
reference is trained for six epochs; each cell then removes channels once, down to a given fraction
of the multiply-accumulates, and retrains the smaller network for one epoch. Cells at one point have
the same multiply-accumulates, so that they are comparable. Controls: random channels; the unpruned
network trained for as long; the same small architecture trained from scratch, for that one epoch
and for all seven.

Finished cells are appended to results/pruning_grid/NETWORK.jsonl and skipped later. Each reads the
test images once, at its end; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.pruning_grid_report import write_report
from secateur import environment, recipe
from secateur.benchmarking.cost import macs, parameters
from secateur.data import load
from secateur.pipeline import open_chain
from secateur.pipeline.sensitivity_stage import sensitivity_curves
from secateur.pruning.plan import Plan
from secateur.pruning.removal import plan_removal
from secateur.pruning.surgery import rebuild, remove
from secateur.recipe import Recipe, load_recipe
from secateur.store import Store
from secateur.training.checkpoint import remove_checkpoints
from secateur.training.cpu import keep_freed_memory
from secateur.training.evaluation import correctness
from secateur.training.loop import train

FOLDER = Path(__file__).parent.parent / "results" / "pruning_grid"
NETWORKS = {
    "shufflenet_v2": "shufflenet_v2-fashionmnist-quick",
    "mobilenet_v2": "mobilenet_v2-fashionmnist-quick",
}
EPOCHS, MORE = 6, 1
LEFT = (0.75, 0.5, 0.35, 0.25, 0.15)
ARMS = {
    "random": {"importance": "random", "scope": "local"},
    "l2-local": {"importance": "l2", "scope": "local"},
    "l2-global": {"importance": "l2", "scope": "global"},
    "sensitivity": {"importance": "l2", "scope": "sensitivity"},
}


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        seed: Seed of the reference and of the cell.
        left: Remaining fraction of the multiply-accumulates.
        arm: A name in ``ARMS``, ``dense``, ``scratch`` or ``scratch-long``.
        retrain: ``none``, ``finetune``, ``rewind`` or, from scratch, ``one-cycle``.
    """

    seed: int
    left: float
    arm: str
    retrain: str


def cells() -> Iterator[Cell]:
    """All cells, the most informative first."""
    for left in LEFT:
        for retrain in ("rewind", "finetune"):
            for arm in ("l2-local", "random", "l2-global"):
                yield Cell(0, left, arm, retrain)
        yield Cell(0, left, "scratch", "one-cycle")
    yield Cell(0, 1.0, "dense", "rewind")
    yield Cell(0, 1.0, "dense", "finetune")
    for left in LEFT:
        yield Cell(0, left, "sensitivity", "rewind")
        yield Cell(0, left, "sensitivity", "finetune")
    for left in (0.5, 0.25, 0.15):
        for seed in (1, 2):
            for arm in ("l2-local", "random", "l2-global", "sensitivity"):
                yield Cell(seed, left, arm, "rewind")
            yield Cell(seed, left, "scratch", "one-cycle")
    for seed in (1, 2):
        yield Cell(seed, 1.0, "dense", "rewind")
    for left in (0.5, 0.25):
        for seed in (0, 1, 2):
            yield Cell(seed, left, "scratch-long", "one-cycle")
    for left in (0.75, 0.35):
        for seed in (1, 2):
            for arm in ("l2-local", "random", "l2-global", "sensitivity"):
                yield Cell(seed, left, arm, "rewind")


class Reference:
    """A trained network of one seed, and plans for it."""

    def __init__(self, network: str, seed: int, data: Path, out: Path) -> None:
        sets = ["network.stem=paper", f"train.epochs={EPOCHS}"]
        self.recipe: Recipe = load_recipe(NETWORKS[network], sets, seed)
        self.pipeline = open_chain(self.recipe, Store(out / "stages"), data, torch.device("cpu"))
        self.shape = self.pipeline.input_shape
        self._plans: dict[tuple[float, str], Plan] = {}

    @cached_property
    def network(self) -> nn.Module:
        """The trained network."""
        return self.pipeline.load_network("train")

    @cached_property
    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """From group to the loss of accuracy on validation against the fraction removed."""
        return sensitivity_curves(self.pipeline)

    def plan(self, left: float, arm: str) -> Plan:
        """The plan of an arm; arms from scratch have the architecture of ``l2-local``."""
        arm = "l2-local" if arm.startswith("scratch") else arm
        if (left, arm) not in self._plans:
            how: dict[str, Any] = dict(ARMS[arm])
            if arm == "sensitivity":
                how["curves"] = self.curves
            self._plans[left, arm] = plan_removal(
                self.network, torch.zeros(1, *self.shape), round_to=1,
                objective="macs", target=left, seed=self.recipe.seed, **how,
            )  # fmt: skip
        return self._plans[left, arm]

    def start(self, cell: Cell) -> nn.Module:
        """The network that a cell trains."""
        if cell.arm == "dense":
            return remove(self.network, Plan())
        plan = self.plan(cell.left, cell.arm)
        if cell.arm.startswith("scratch"):
            return rebuild(self.pipeline.fresh_network(), plan)
        return remove(self.network, plan)


def budget(base: recipe.Train, cell: Cell) -> recipe.Train:
    """Training configuration of a cell."""
    changes: dict[str, Any] = {"epochs": MORE}
    if cell.arm == "scratch-long":
        changes["epochs"] = EPOCHS + MORE
    elif cell.retrain == "rewind":
        changes["learning_rate"] = base.learning_rate / 2
    elif cell.retrain == "finetune":
        changes |= {"schedule": "constant", "learning_rate": base.learning_rate / 100}
    return base.model_copy(update=changes)


def run(cell: Cell, reference: Reference) -> dict[str, Any]:
    """Run one cell and return its record."""
    pipeline = reference.pipeline
    start = time.monotonic()
    network = pipeline.place(reference.start(cell))
    training, validation = pipeline.parts
    checkpoint = pipeline.store.root / "cell.safetensors"
    remove_checkpoints(checkpoint)
    before = correctness(network, validation, pipeline.prepare)
    config = budget(reference.recipe.train, cell)
    network, _ = train(
        network, training, validation, pipeline.prepare, config,
        seed=cell.seed, checkpoint=checkpoint, label=f"{cell.arm} {cell.left:g} {cell.retrain}",
    )  # fmt: skip
    remove_checkpoints(checkpoint)
    test = load(reference.recipe.data.name, pipeline.data_root, train=False)
    right = correctness(network, test, pipeline.prepare)
    dense = reference.network
    return {
        "network": reference.recipe.network.name,
        **asdict(cell),
        "epochs": config.epochs,
        "macs": macs(network, reference.shape),
        "macs_left": macs(network, reference.shape) / macs(dense, reference.shape),
        "parameters": parameters(network),
        "parameters_left": parameters(network) / parameters(dense),
        "validation_right_before_retraining": int(before.sum()),
        "validation_right": int(correctness(network, validation, pipeline.prepare).sum()),
        "validation_images": len(validation),
        "test_right": int(right.sum()),
        "test_images": len(test),
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "seconds": round(time.monotonic() - start, 1),
        "threads": environment.threads(),
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }


def reference_record(reference: Reference, seed: int) -> dict[str, Any]:
    """The unpruned reference on the test images."""
    pipeline, network = reference.pipeline, reference.network
    test = load(reference.recipe.data.name, pipeline.data_root, train=False)
    right = correctness(network, test, pipeline.prepare)
    return {
        "network": reference.recipe.network.name,
        **asdict(Cell(seed, 1.0, "reference", "none")),
        "epochs": EPOCHS,
        "macs": macs(network, reference.shape),
        "macs_left": 1.0,
        "parameters": parameters(network),
        "parameters_left": 1.0,
        "test_right": int(right.sum()),
        "test_images": len(test),
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "threads": environment.threads(),
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }


def grid(network: str, data: Path, out: Path) -> None:
    """Run all missing cells."""
    keep_freed_memory()
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{network}.jsonl"
    done = set()
    if path.exists():
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        done = {Cell(r["seed"], r["left"], r["arm"], r["retrain"]) for r in lines}
    references: dict[int, Reference] = {}
    for cell in cells():
        if cell in done:
            continue
        if cell.seed not in references:
            references[cell.seed] = Reference(network, cell.seed, data, out / network)
        reference = references[cell.seed]
        records = [run(cell, reference)]
        if (first := Cell(cell.seed, 1.0, "reference", "none")) not in done:
            done.add(first)
            records.insert(0, reference_record(reference, cell.seed))
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def main(arguments: list[str]) -> None:
    """Run one network's grid, or write the report of both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=[*NETWORKS, "report"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/grid"))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    if options.network == "report":
        write_report()
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    grid(options.network, options.data, options.out)
