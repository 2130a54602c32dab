"""Compares removing blocks, merging, narrowing, and all of them, at equal latency and training.

Run: python -m benchmarks depth OUT --data DIR [--dataset NAME] [--images N] [--epochs N]
     python -m benchmarks depth OUT --report

MobileNetV2 with a first convolution of stride 1, at the images' own size. For each of three seeds,
a reference is trained; OUT keeps its weights. Each cell makes the network faster by one lever, to a
fraction of the measured int8 latency of one image, and trains it again; all levers train equally
long. ``joint`` first merges and removes blocks to the square root of the fraction, trains for half
of the epochs, and then removes channels. Accuracy is measured on training images that were held
out; the test images are not read.

Cells are appended to OUT/cells.jsonl as they end; recorded cells are skipped, so that an
interrupted run can be resumed. The page OUT/README.md is written at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn

from benchmarks.common import records
from benchmarks.common.records import Record
from secateur import environment, recipe
from secateur.benchmarking.layer_timer import LayerTimer
from secateur.benchmarking.network_timer import NetworkTimer
from secateur.data import Preparation, load, normalization
from secateur.data.splits import draw
from secateur.errors import NetworkError
from secateur.models.build import build_network
from secateur.pruning.merging.depth import FIT_STEPS, choose_depth
from secateur.pruning.merging.links import Kind
from secateur.pruning.merging.rewrite import merge_segments
from secateur.pruning.merging.segment_fit import Fit
from secateur.pruning.removal import prune
from secateur.training.cpu import keep_freed_memory
from secateur.training.evaluation import correctness
from secateur.training.loop import train
from secateur.wording import counted

LEVERS = ("blocks", "merging", "width", "joint")
TARGETS = (0.9, 0.8, 0.7, 0.6, 0.5)
SEEDS = (0, 1, 2)
SIZES = {"fashionmnist": 28, "cifar10": 32}
"""Sides of the images."""
COMPARED, CHOICES = 10_000, 1000
"""Images on which networks are compared, and training images for losses of segments."""
ALLOWED = 0.5
"""Points of accuracy that may be lost, in the comparison at equal accuracy."""
PACKAGES = ("torch", "onnxruntime")


@dataclass(frozen=True)
class Cell:
    """One faster network: its lever, its share of the latency, and the seed."""

    lever: str
    target: float
    seed: int


@dataclass(frozen=True)
class Settings:
    """What all cells have in common."""

    out: Path
    data: Path
    dataset: str
    images: int
    compared: int
    epochs: int


def cells() -> Iterator[Cell]:
    """All cells, seed by seed."""
    for seed, target, lever in product(SEEDS, TARGETS, LEVERS):
        yield Cell(lever, target, seed)


class Reference:
    """The trained network of one seed, its images and timers."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.seed, self.settings = seed, settings
        every = load(settings.dataset, settings.data, train=True)
        order = draw(every.labels, settings.images + settings.compared, 0)
        compared = draw(every.labels[order], settings.compared, 1)
        apart = torch.ones(len(order), dtype=torch.bool)
        apart[compared] = False
        self.training, self.compared = every.take(order[apart]), every.take(order[compared])
        mean, std = normalization(self.training, "dataset")
        self.size, channels = SIZES[settings.dataset], every.pixels.shape[1]
        self.prepare = Preparation(mean, std, self.size)
        self.example = torch.zeros(1, channels, self.size, self.size)
        threads = environment.threads()
        self.layer_times = LayerTimer("int8", threads)
        self.network_timer = NetworkTimer(self.example.shape[1:], "int8", threads)
        self.network = self._trained(channels)

    def _trained(self, channels: int) -> nn.Module:
        config = recipe.Network(name="mobilenet_v2", stem="stride1", resolution=self.size)
        network = build_network(config, channels, 10, self.seed)
        path = self.settings.out / f"reference-{self.seed}.safetensors"
        if path.exists():
            network.load_state_dict(load_file(path))
            return network.eval()
        network = self.train(network, self.settings.epochs, 0.1)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
        return network

    def train(self, network: nn.Module, epochs: int, rate: float) -> nn.Module:
        """Train a network; returns it in inference mode."""
        config = recipe.Train(
            epochs=epochs, batch_size=128, learning_rate=rate, label_smoothing=0.1,
            augment=recipe.Augment(flip=True),
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            kept, _ = train(
                network.to(memory_format=torch.channels_last), self.training,
                self.compared.take(torch.arange(min(500, len(self.compared)))), self.prepare,
                config, seed=self.seed, checkpoint=Path(folder) / "checkpoint.safetensors",
            )  # fmt: skip
        return kept.eval()

    def shallow(self, target: float, kinds: Sequence[Kind]) -> nn.Module:
        """The network, linearized for a share of the latency."""
        count = min(CHOICES, len(self.training) // 2)
        fitted, measured = (
            self.training.take(torch.arange(start, start + count)) for start in (0, count)
        )
        fit = Fit(fitted, self.prepare, FIT_STEPS)
        choice = choose_depth(
            self.network, self.example, fit, measured, self.prepare, target, self.layer_times,
            self.network_timer, kinds=kinds,
        )  # fmt: skip
        return fit.linearize(choice.traced, choice.segments)

    def ratio(self, network: nn.Module) -> float:
        """Measured latency relative to the reference."""
        networks = map(self.network_timer.load, (self.network, network))
        before, after = self.network_timer.time(*networks)
        return after / before


def blocks(reference: Reference, target: float, epochs: int) -> nn.Module:
    """Remove residual blocks."""
    return reference.train(reference.shallow(target, ("remove",)), epochs, 0.05)


def merging(reference: Reference, target: float, epochs: int) -> nn.Module:
    """Merge layers; blocks stay."""
    linear = reference.shallow(target, ("merge",))
    return merge_segments(reference.train(linear, epochs, 0.05))


def width(reference: Reference, target: float, epochs: int) -> nn.Module:
    """Remove channels."""
    smaller = prune(reference.network, reference.example, latency=target)
    return reference.train(smaller, epochs, 0.05)


def joint(reference: Reference, target: float, epochs: int) -> nn.Module:
    """Merge layers and remove blocks, then channels."""
    half = epochs // 2
    linear = reference.shallow(target**0.5, ("merge", "remove"))
    merged = merge_segments(reference.train(linear, epochs - half, 0.05))
    left = min(1.0, target / reference.ratio(merged))
    return reference.train(prune(merged, reference.example, latency=left), max(1, half), 0.05)


RUNS: dict[str, Callable[[Reference, float, int], nn.Module]] = {
    "blocks": blocks, "merging": merging, "width": width, "joint": joint,
}  # fmt: skip


def run(cell: Cell, reference: Reference) -> Record:
    """Make one faster network; return its record, or why there is none."""
    start = time.process_time()
    record = {
        "lever": cell.lever, "target": cell.target, "seed": cell.seed,
        "dataset": reference.settings.dataset, "epochs": reference.settings.epochs,
        "images": len(reference.training), "compared": len(reference.compared),
    }  # fmt: skip
    try:
        network = RUNS[cell.lever](reference, cell.target, max(2, reference.settings.epochs // 2))
    except NetworkError as error:
        return record | {"error": str(error)}
    right = correctness(network, reference.compared, reference.prepare)
    ratio = reference.ratio(network)
    seconds = round(time.process_time() - start, 1)
    return record | {"ratio": ratio, "right": records.pack(right), "seconds": seconds}


def measure(settings: Settings) -> None:
    """Run missing cells."""
    keep_freed_memory()
    path = settings.out / "cells.jsonl"
    done = {Cell(r["lever"], r["target"], r["seed"]) for r in records.read(path)}
    reference: Reference | None = None
    for cell in cells():
        if cell in done:
            continue
        if reference is None or reference.seed != cell.seed:
            reference = Reference(cell.seed, settings)
        unchanged = Cell("none", 1.0, cell.seed)
        if unchanged not in done:
            done.add(unchanged)
            records.append(path, _unchanged(reference), PACKAGES)
        records.append(path, run(cell, reference), PACKAGES)
        reference.layer_times.save()


def _unchanged(reference: Reference) -> Record:
    right = correctness(reference.network, reference.compared, reference.prepare)
    return {
        "lever": "none", "target": 1.0, "seed": reference.seed, "ratio": 1.0,
        "dataset": reference.settings.dataset, "epochs": reference.settings.epochs,
        "images": len(reference.training), "compared": len(reference.compared),
        "right": records.pack(right),
    }  # fmt: skip


# ---- the page


def lost(rows: Sequence[Record], references: dict[int, Record]) -> tuple[float, float, float]:
    """Mean points of accuracy lost, paired by seed and image, with a 95 % interval over images."""
    each = np.mean(
        [100.0 * (_right(references[row["seed"]]) - _right(row)) for row in rows], axis=0
    )
    reach = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5
    return float(each.mean()), float(each.mean() - reach), float(each.mean() + reach)


def _right(record: Record) -> np.ndarray:
    return records.unpack(record["right"], record["compared"]).astype(float)


def page(rows: Sequence[Record]) -> str:
    """The page as Markdown."""
    references = {row["seed"]: row for row in rows if row["lever"] == "none"}
    if not references:
        return "# Depth and width compared\n\nNothing is measured yet.\n"
    first = next(iter(references.values()))
    accuracy = np.mean([100 * _right(row).mean() for row in references.values()])
    lines = [
        "# Depth and width compared", "",
        "Written by `python -m benchmarks depth` from [its cells](cells.jsonl). MobileNetV2, "
        f"{first['dataset']}, {first['images']:,} training images, "
        f"{first['epochs']} epochs, and half as many after each change. Latency: int8, ONNX "
        f"Runtime, one image, {first['processor']}, as a share of the reference's. Points of "
        f"accuracy lost on {first['compared']:,} other training images, paired, with 95 % "
        "intervals over images, for these trainings.", "",
        f"Reference: {accuracy:.2f} % ({counted(len(references), 'seed')}).", "",
        "| Lever | Target | Latency | Points lost | Seeds |", "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    fastest: dict[str, float] = {}
    for lever, target in product(LEVERS, TARGETS):
        own = [r for r in rows if (r["lever"], r["target"]) == (lever, target)]
        timed = [row for row in own if "ratio" in row]
        if not timed:
            lines += [f"| {lever} | {target} | not reached | – | {len(own)} |"] if own else []
            continue
        ratio, (mean, low, high) = (
            float(np.mean([r["ratio"] for r in timed])),
            lost(timed, references),
        )
        interval = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(f"| {lever} | {target} | {ratio:.2f} | {interval} | {len(timed)} |")
        if high <= ALLOWED:
            fastest[lever] = min(ratio, fastest.get(lever, 1.0))
    lines += ["", f"At most {ALLOWED} points lost at 95 %:", "",
              "| Lever | Least latency |", "| --- | ---: |"]  # fmt: skip
    lines += [f"| {lever} | {fastest[lever]:.2f} |" if lever in fastest else f"| {lever} | – |"
              for lever in LEVERS]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Run missing cells and write the page, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dataset", default="fashionmnist", choices=sorted(SIZES))
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--compared", type=int, default=COMPARED)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    if not options.report:
        measure(
            Settings(
                options.out, options.data, options.dataset, options.images, options.compared,
                options.epochs,
            )
        )  # fmt: skip
    text = page(records.read(options.out / "cells.jsonl"))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "README.md").write_text(text, encoding="utf-8")
