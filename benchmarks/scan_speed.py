"""Times a per-layer scan against a naive loop, and compares the accuracies.

Run: python -m benchmarks scan_speed [--images 2000] [--epochs 3] [--stem paper] [NETWORK ...]
For each network: trained briefly on fashionmnist-mini, then every group at ten levels. The naive
loop sets the weights of one level, evaluates every image in eager PyTorch (inference mode, channels
last, 250 at a time, freed memory kept, as the pipeline does), and restores the weights. The scan is
timed before and after the loop without caches; the mean is reported. Prints one JSON line per
network with wall-clock and processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from secateur import environment
from secateur.data import Images, Preparation, load
from secateur.models.build import build_network
from secateur.pruning.channels import Prunable
from secateur.pruning.find import find_prunable
from secateur.recipe import Network, Train
from secateur.sensitivity.engine import EagerEngine
from secateur.sensitivity.scan import ScanPoint, scan_layers
from secateur.training.cpu import keep_freed_memory
from secateur.training.loop import train

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
PREPARE = Preparation((0.5,), (0.5,), 28)


def trained(name: str, stem: str, epochs: int) -> torch.nn.Module:
    """The network after a brief training on all training images of the excerpt."""
    network = build_network(Network(name=name, stem=stem, resolution=28), 1, 10)
    network = network.to(memory_format=torch.channels_last)
    images = load("fashionmnist-mini", None, train=True)
    config = Train(epochs=epochs, learning_rate=0.1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        validation = images.spread(500)
        return train(network, images, validation, PREPARE, config, seed=0, checkpoint=checkpoint)[0]


def scan(
    network: torch.nn.Module, prunable: Prunable, images: Images, naive: bool
) -> tuple[float, float, list[ScanPoint]]:
    """Wall-clock seconds, processor seconds and points of one scan."""
    start, worked = time.perf_counter(), time.process_time()
    engine = EagerEngine(network) if naive else None
    points = scan_layers(network, prunable, [], LEVELS, images, PREPARE, engine=engine)
    return time.perf_counter() - start, time.process_time() - worked, points


def compare(name: str, stem: str, epochs: int, count: int) -> dict[str, object]:
    """Compare scan and loop on one network."""
    network = trained(name, stem, epochs)
    prunable = find_prunable(network, torch.zeros(1, 1, 28, 28))
    images = load("fashionmnist-mini", None, train=False)
    if count > len(images):
        more = load("fashionmnist-mini", None, train=True)
        pixels = torch.cat([images.pixels, more.pixels])
        labels = torch.cat([images.labels, more.labels])
        images = Images(pixels, labels, images.classes)
    images = images.take(torch.arange(min(count, len(images))))
    scan(network, prunable, images.spread(250), naive=True)  # warm up both
    scan(network, prunable, images.spread(250), naive=False)
    before, loop, after = (scan(network, prunable, images, naive) for naive in (False, True, False))
    seconds, worked = ((before[i] + after[i]) / 2 for i in range(2))
    apart = [abs(a.correct - b.correct) for a, b in zip(before[2], loop[2], strict=True)]
    return {
        "network": name,
        "stem": stem,
        "points": len(apart),
        "images": len(images),
        "naive_seconds": round(loop[0], 2),
        "scan_seconds": round(seconds, 2),
        "ratio": round(loop[0] / seconds, 2),
        "naive_processor_seconds": round(loop[1], 2),
        "scan_processor_seconds": round(worked, 2),
        "processor_ratio": round(loop[1] / worked, 2),
        "largest_difference": max(apart),
        "points_that_differ": sum(map(bool, apart)),
        "unpruned_accuracy": round(loop[2][0].accuracy.value + loop[2][0].drop.value, 4),
        "lowest_accuracy": round(min(point.accuracy.value for point in loop[2]), 4),
        "threads": torch.get_num_threads(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }


def main(arguments: list[str]) -> None:
    """Compare scan and loop on each network and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["shufflenet_v2_x1_0", "mobilenet_v2"])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--stem", default="paper")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    for name in options.networks:
        print(json.dumps(compare(name, options.stem, options.epochs, options.images)), flush=True)
