"""Accuracy of every row on the test images, and the time of all of them in turns in one process."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common.isolation import apart, in_one_line, silent
from benchmarks.common.records import Record, pack
from benchmarks.peers.onnx_rows import BATCH
from benchmarks.peers.row import RowInput
from benchmarks.peers.rows import ROWS
from benchmarks.peers.torch_pruning_row import prune_and_train
from secateur import data
from secateur.benchmarking.timing import latencies
from secateur.console import say
from secateur.models.build import build_network
from secateur.onnx_ir.export import export_onnx
from secateur.pipeline import Chain
from secateur.runtimes import Runtime
from secateur.training.evaluation import correct, scorer

SIDE = 224
"""Side in pixels for timing."""
TIME_CALIBRATION = 32
"""Number of calibration images for timing."""
WARMUP = 20
"""Untimed turns."""


@dataclass
class Study:
    """A trained network and the inputs of rows.

    Attributes:
        chain: The recipe's stages, on the CPU.
        folder: Folder for networks that peers train.
        calibration: Number of calibration images.
        threads: Threads of every runtime.
    """

    chain: Chain
    folder: Path
    calibration: int
    threads: int

    def network(self, which: str) -> nn.Module:
        """``reference``, ``pruned`` or ``torch-pruning``, in inference mode, contiguous."""
        if which == "torch-pruning":
            made = torch.load(prune_and_train(self.chain, self.folder), weights_only=False)
        else:
            made = self.chain.load_network(STAGES[which])
        return made.cpu().to(memory_format=torch.contiguous_format).eval()

    @cached_property
    def files(self) -> dict[str, Path]:
        """Secateur's files."""
        chain = self.chain
        packed = {"packed": chain.packed_file}
        return packed | {v: chain.file(v) for v in ("reference", "pruned", "quantized")}

    def images(self, count: int, prepare: data.Preparation) -> np.ndarray:
        """Calibration images, float32 (count, C, R, R); the same for every row."""
        training, _ = self.chain.parts
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))
        return next(data.batches(training.take(order[:count]), prepare, count))

    def source(self, which: str, folder: Path, side: int | None = None) -> RowInput:
        """Inputs of rows, at the recipe's geometry, or at ``side`` for timing."""
        network, channels = self.network(which), self.chain.input_shape[0]
        prepare, count = self.chain.prepare, self.calibration
        if side is not None:
            spec = self.chain.recipe.network.model_copy(
                update={"resolution": side, "stem": "paper"}
            )
            network = with_stem(network, build_network(spec, channels, 10))
            prepare, count = replace(prepare, resolution=side), min(count, TIME_CALIBRATION)
        folder.mkdir(parents=True, exist_ok=True)
        module, onnx = folder / "network.pt", folder / "float.onnx"
        torch.save(network, module)
        shape = (channels, prepare.resolution, prepare.resolution)
        export_onnx(network, shape, onnx, self.chain.metadata, straight=False)
        _, validation = self.chain.parts
        images, quantize = self.images(count, prepare), self.chain.recipe.quantize
        return RowInput(module, onnx, images, validation, prepare, quantize)


STAGES = {"reference": "train", "pruned": "remove"}


def with_stem(network: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of ``network`` with the strides and first max-pool of ``like``."""
    made = copy.deepcopy(network)
    for name, module in like.named_modules():
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Conv2d):
            made.get_submodule(name).stride = module.stride
        elif isinstance(module, nn.MaxPool2d):
            setattr(made.get_submodule(parent), leaf, copy.deepcopy(module))
    return made


@contextmanager
def row_inputs(study: Study, keys: list[str], side: int | None = None) -> Iterator[dict[str, Any]]:
    """From row to its inputs, or to the error of making them."""
    with tempfile.TemporaryDirectory() as root:
        made: dict[str, RowInput | Record] = {}
        for which in dict.fromkeys(ROWS[key].network for key in keys):
            try:
                made[which] = study.source(which, Path(root) / which, side)
            except Exception as error:  # for example of Torch-Pruning; other networks continue
                made[which] = {"error": in_one_line(error)}
        own = [key for key in keys if ROWS[key].kind == "secateur"]
        files = study.files if own and side is None else {}
        result = {key: made[ROWS[key].network] for key in keys}
        for key in own:
            if isinstance(result[key], RowInput):
                result[key] = replace(result[key], files=files)
        yield result


# ---- accuracy


def accuracy(study: Study, key: str, source: RowInput | Record, test: data.Images) -> Record:
    """Bytes and correct test images of one row, or its error."""
    if isinstance(source, dict):
        return source
    return apart(_accuracy, key, source, test, study.threads)


def _accuracy(key: str, source: RowInput, test: data.Images, threads: int) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        record, _ = make_and_evaluate(key, source, test, Path(folder), threads)
    return record


def make_and_evaluate(
    key: str, source: RowInput, test: data.Images, folder: Path, threads: int
) -> tuple[Record, Path]:
    """Bytes and correct test images of one row, and the file that it opens.

    All files are kept in ``folder``.
    """
    row = ROWS[key]
    torch.set_num_threads(threads)
    with silent():
        made = row.make(source, folder)
        runtime = row.open(made.opens, threads)
        prepare = (lambda pixels: pixels) if row.raw else source.prepare
        right = correct(scorer(runtime), test, prepare, BATCH)
    weight = sum(file.stat().st_size for file in made.ships)
    result = {"bytes": weight, "right": pack(right), "test_images": len(test), "said": made.notes}
    return result | {"resolution": source.prepare.resolution}, made.opens


# ---- time


def time_rows(study: Study, keys: list[str], notes: dict[str, Record], repeats: int) -> Record:
    """From row to the milliseconds of one image at ``SIDE``, or its error.

    Each row's file is first made, opened and tried in a separate process, to detect crashes. This
    process then opens all successful rows and times them in turns.

    Args:
        study: The trained network.
        keys: Rows to time; rows with ``timed_as`` are skipped.
        notes: Notes of each row from the measurement of accuracy.
        repeats: Timed turns.
    """
    keys = [key for key in keys if not ROWS[key].timed_as]
    result: dict[str, Record] = {}
    torch.set_num_threads(study.threads)
    with tempfile.TemporaryDirectory() as root, row_inputs(study, keys, SIDE) as source, silent():
        files, image = {}, study.images(1, replace(study.chain.prepare, resolution=SIDE))
        for key in keys:
            if isinstance(source[key], dict):
                result[key] = source[key]
                continue
            folder = Path(root) / key
            folder.mkdir()
            say(f"latency: {key}")
            row_input = replace(source[key], notes=notes.get(key, {}))
            result[key] = apart(_try, key, row_input, image, folder, study.threads)
            if "error" not in result[key]:
                files[key] = Path(result[key].pop("opens"))
        return result | take_turns(files, image, study.threads, repeats)


def take_turns(
    files: Mapping[str, Path], image: np.ndarray, threads: int, repeats: int
) -> dict[str, Record]:
    """By row, the milliseconds of one prepared image, (1, C, R, R), in turns; or its error."""
    runtimes: dict[str, Runtime] = {}
    result: dict[str, Record] = {}
    for key, path in files.items():
        try:
            runtimes[key] = ROWS[key].open(path, threads)
            runtimes[key].run(image)
        except Exception as error:  # a peer raises what it likes
            result[key] = {"error": in_one_line(error)}
            runtimes.pop(key, None)
    for key, samples in latencies(runtimes, image, WARMUP, repeats).items():
        result[key] = {"milliseconds": [round(float(sample), 4) for sample in samples]}
    return result


def _try(key: str, source: RowInput, image: np.ndarray, folder: Path, threads: int) -> Record:
    torch.set_num_threads(threads)
    with silent():
        made = ROWS[key].make(source, folder)
        ROWS[key].open(made.opens, threads).run(image)
    return {"opens": str(made.opens)}
