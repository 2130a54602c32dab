"""Rows for networks compressed by ``secateur compress``: accuracy, files and time.

Peers get the original float network, the same number of calibration images and the same split.
Torch-Pruning prunes to the multiply-accumulates of the chosen candidate, and trains with the same
settings for the same number of epochs.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from benchmarks.common.isolation import apart
from benchmarks.common.records import Record
from benchmarks.peers.measure import make_and_evaluate, take_turns
from benchmarks.peers.row import RowInput
from benchmarks.peers.rows import ALL_CHANNELS, ROWS
from benchmarks.peers.torch_pruning_row import pruned_to_macs, save_module
from secateur.benchmarking.cost import macs
from secateur.compression.command import Arguments, resolve
from secateur.compression.inputs import Inputs, read_problem
from secateur.compression.problem import Problem
from secateur.compression.settings import Settings
from secateur.data import batches
from secateur.onnx_ir.export import export_onnx
from secateur.training.loop import train
from secateur.training.trainer import Epoch, Teacher

KEYS = (
    "eager",
    "fp32-onnxruntime",
    "fp32-openvino",
    "quantize_static-per-channel",
    "quantize_static-u8s8",
    "nncf",
    "torch-pruning",
    "torch-pruning-int8",
    "torch-pruning-u8s8",
    "ours-int8",
    "ours-int8-openvino",
)
"""Rows of :data:`ROWS` that need no recipe."""


@dataclass(frozen=True)
class Compressed:
    """A finished compression and its peers.

    Attributes:
        out: Output folder of ``secateur compress``.
        folder: Folder for files of peers, beside ``out``.
        threads: Threads of every runtime.
        training_seconds: After which Torch-Pruning starts no further epoch.
    """

    out: Path
    folder: Path
    threads: int
    training_seconds: float

    @cached_property
    def resolved(self) -> tuple[Inputs, Settings]:
        """Inputs and settings of the compression."""
        return resolve(Arguments(network=str(self.out / "recipe.toml")))

    @cached_property
    def problem(self) -> Problem:
        """Network and images."""
        return read_problem(self.resolved[0], torch.device("cpu"))

    @cached_property
    def shipped(self) -> dict[str, str]:
        """The line of curve.csv of the chosen candidate."""
        with (self.out / "curve.csv").open(encoding="utf-8", newline="") as file:
            return next(row for row in csv.DictReader(file) if row["shipped"] == "yes")

    def source(self, which: str) -> RowInput:
        """Inputs of the rows of one float network, made once."""
        problem, folder = self.problem, self.folder / which
        folder.mkdir(parents=True, exist_ok=True)
        module, onnx = folder / "network.pt", folder / "float.onnx"
        if which == "torch-pruning":
            prune_and_train(self, module)
        elif not module.exists():
            contiguous = problem.network.to(memory_format=torch.contiguous_format)
            save_module(contiguous.eval(), module)
        quantize = self.resolved[1].quantize
        order = torch.randperm(len(problem.training), generator=torch.Generator().manual_seed(0))
        some = problem.training.take(order[: quantize.images])
        images = next(batches(some, problem.prepare, len(some)))
        files = {"quantized": self.out / "net.onnx", "packed": self.out / "net.sec"}
        made = RowInput(module, onnx, images, problem.validation, problem.prepare, quantize, files)
        if not onnx.exists():
            export_onnx(made.module, problem.input_shape, onnx, {}, straight=False)
        return made


def evaluate(compressed: Compressed, key: str) -> Record:
    """Bytes of a row, on which test images it is right, and the file to open; or its error."""
    return apart(_evaluate, replace(compressed), key)


def _evaluate(compressed: Compressed, key: str) -> Record:
    torch.set_num_threads(compressed.threads)
    row, folder = ROWS[key], compressed.folder / key
    source = compressed.source("reference" if row.kind == "secateur" else row.network)
    folder.mkdir(parents=True, exist_ok=True)
    test = compressed.problem.test()
    record, opens = make_and_evaluate(key, source, test, folder, compressed.threads)
    note = source.network.with_suffix(".txt")  # of Torch-Pruning's training
    record["training"] = note.read_text(encoding="utf-8") if note.exists() else ""
    return record | {"opens": os.path.relpath(opens, compressed.folder)}


def in_turns(compressed: Compressed, rows: Sequence[Record], repeats: int) -> dict[str, Record]:
    """By row, the milliseconds of one image, all files in one process in turns.

    Args:
        compressed: A finished compression.
        rows: Newest records of :func:`evaluate`, each with its ``row``.
        repeats: Timed turns.
    """
    torch.set_num_threads(compressed.threads)
    files: Mapping[str, Path] = {
        row["row"]: compressed.folder / row["opens"] for row in rows if "opens" in row
    }
    problem = compressed.problem
    image = next(batches(problem.validation, problem.prepare, 1))
    return take_turns(files, image, compressed.threads, repeats)


# ---- Torch-Pruning


def prune_and_train(compressed: Compressed, path: Path) -> None:
    """Write Torch-Pruning's module, trained like the chosen candidate, if missing.

    Raises:
        ValueError: The chosen candidate has all channels.
    """
    shipped, (_, settings) = compressed.shipped, compressed.resolved
    if float(shipped["kept"]) == 1:
        raise ValueError(ALL_CHANNELS)
    if path.exists():
        return
    problem, epochs, start = compressed.problem, int(shipped["epochs"]), time.monotonic()
    smaller: nn.Module = pruned_to_macs(problem.network, problem.input_shape, int(shipped["macs"]))
    history = list[Epoch]()
    if epochs:
        distill = settings.tune.distill
        smaller, history = train(
            smaller.to(memory_format=torch.channels_last), problem.training, problem.validation,
            problem.prepare, settings.tune.to_train(smaller, epochs), seed=settings.seed,
            checkpoint=path.with_name("checkpoint.safetensors"), label="torch-pruning",
            teacher=Teacher(problem.network, problem.prepare, distill) if distill else None,
            stop=lambda _: time.monotonic() - start > compressed.training_seconds,
        )  # fmt: skip
    counted = macs(smaller, problem.input_shape) / 1e6
    note = f"{counted:.1f} M MACs, Secateur {int(shipped['macs']) / 1e6:.1f} M"
    note += f"; {len(history)} of {epochs} epochs"
    path.with_suffix(".txt").write_text(note, encoding="utf-8")
    save_module(smaller.to(memory_format=torch.contiguous_format).eval(), path)
