"""Time a training step on the processor, with and without the two ways around slow paths.

Run: python -m benchmarks training_speed
Each arm is a process of its own, because the allocator cannot be set back; the arms take turns.
Prints one JSON line per arm: median, 10th and 90th percentile of images per second.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import numpy as np
import torch

from secateur import environment
from secateur.models.build import build_network
from secateur.recipe import Network, Train
from secateur.training.cpu import fast_layers, keep_freed_memory
from secateur.training.trainer import Trainer

CASES = [
    ("mobilenet_v2", "paper"),
    ("shufflenet_v2_x1_0", "paper"),
    ("shufflenet_v2_x1_0", "stride1"),
]
BATCH, STEPS, WARMUP, ROUNDS = 128, 10, 3, 2


def arm(name: str, stem: str, fast: bool) -> list[float]:
    """Images per second of each of ``STEPS`` steps at 28x28, one channel."""
    if fast:
        keep_freed_memory()
    network = build_network(Network(name=name, stem=stem, resolution=28), 1, 10)
    network = network.to(memory_format=torch.channels_last).train()
    trainer = Trainer(network, Train(epochs=1, learning_rate=0.01), seed=0)
    images = torch.randn(BATCH, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    speeds = []
    with fast_layers(network) if fast else contextlib.nullcontext():
        for step in range(WARMUP + STEPS):
            start = time.perf_counter()
            trainer.step(images, labels, 0.01)
            if step >= WARMUP:
                speeds.append(BATCH / (time.perf_counter() - start))
    return speeds


def main(arguments: list[str]) -> None:
    """Run every arm ``ROUNDS`` times, taking turns, and print what came out."""
    if len(arguments) == 3:
        print(json.dumps(arm(arguments[0], arguments[1], arguments[2] == "fast")))
        return
    speeds: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for name, stem in CASES:
            for way in ("plain", "fast"):
                command = [sys.executable, "-m", "benchmarks", "training_speed", name, stem, way]
                done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
                speeds.setdefault((name, stem, way), []).extend(json.loads(done.stdout))
    for (name, stem, way), result in speeds.items():
        low, median, high = np.percentile(result, [10, 50, 90])
        print(
            json.dumps(
                {
                    "network": name,
                    "stem": stem,
                    "way": way,
                    "images_per_second": round(median, 1),
                    "low": round(low, 1),
                    "high": round(high, 1),
                    "n": len(result),
                    "threads": torch.get_num_threads(),
                    "processor": environment.processor(),
                    "versions": environment.versions(),
                    "commit": environment.commit(),
                }
            )
        )
