"""Times a training step on a CPU: plain PyTorch, torch.compile, and Secateur's faster layers.

Run: python -m benchmarks training_speed [--busy N] [--network NAME] [--stem STEM] [--ways WAY ...]
With --busy, N other processes run at the same time. Each arm is a separate process, because
settings of the allocator and OpenMP cannot be reset; arms run in turns. Prints one JSON line per
arm: median, 10th and 90th percentile of images per second, and images per second of processor time,
which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from secateur import environment
from secateur.models.build import build_network
from secateur.recipe import Network, Train
from secateur.training.cpu import fast_layers, keep_freed_memory
from secateur.training.trainer import Trainer

CASES = [
    (name, stem, 32)
    for stem in ("paper", "stride1", "cifar")
    for name in ("mobilenet_v2", "shufflenet_v2_x1_0")
] + [("alexnet", "paper", 64)]
WAYS = ("plain", "compiled", "fast", "sharded")
"""Plain torch; compiled by inductor; faster layers; faster layers with a shard for each core."""
BATCH, STEPS, WARMUP, ROUNDS, SHARDS = 128, 6, 2, 2, 2
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP settings of the ``secateur`` command; plain and compiled arms use torch's defaults."""


def arm(name: str, stem: str, side: int, way: str) -> list[tuple[float, float]]:
    """Images per second, and per second of processor time, of each of ``STEPS`` steps."""
    own = way in ("fast", "sharded")
    if own:
        keep_freed_memory()
    network = build_network(Network(name=name, stem=stem, resolution=side), 3, 10)  # type: ignore[arg-type]
    network = network.to(memory_format=torch.channels_last).train()
    if way == "compiled":
        network.compile()
    shards = SHARDS if way == "sharded" else 1
    trainer = Trainer(network, Train(epochs=1, learning_rate=0.01, shards=shards), seed=0)
    images = torch.randn(BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    speeds = []
    with fast_layers(*trainer.networks) if own else nullcontext():
        for step in range(WARMUP + STEPS):
            start, start_work = time.perf_counter(), time.process_time()
            trainer.step(images, labels, 0.01)
            seconds, work = time.perf_counter() - start, time.process_time() - start_work
            if step >= WARMUP:
                speeds.append((BATCH / seconds, BATCH / work))
    return speeds


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Other work on the cores: matrix products of one thread each."""
    code = "import numpy as np\na = np.ones((500, 500))\nwhile True: a @ a"
    setting = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=setting)  # noqa: S603
        for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(cases: list[tuple[str, str, int]], ways: list[str], busy: int) -> None:
    """Run every arm ``ROUNDS`` times, taking turns, and print the results."""
    speeds: dict[tuple[str, str, int, str], list[tuple[float, float]]] = {}
    with busy_processes(busy):
        for _ in range(ROUNDS):
            for case in cases:
                for way in ways:
                    module = [sys.executable, "-m", "benchmarks", "training_speed"]
                    command = [*module, "--arm", *map(str, case), way]
                    setting = os.environ | (PASSIVE if way in ("fast", "sharded") else {})
                    done = subprocess.run(  # noqa: S603
                        command, capture_output=True, text=True, check=True, env=setting
                    )
                    speeds.setdefault((*case, way), []).extend(json.loads(done.stdout))
    for (name, stem, side, way), values in speeds.items():
        by_clock, by_work = np.array(values).T
        low, median, high = np.percentile(by_clock, [10, 50, 90])
        record = {
            "network": name, "stem": stem, "resolution": side, "way": way, "busy": busy,
            "images_per_second": round(median, 1), "low": round(low, 1), "high": round(high, 1),
            "images_per_processor_second": round(float(np.median(by_work)), 1),
            "n": len(values), "load": os.getloadavg()[0], "threads": torch.get_num_threads(),
            "processor": environment.processor(), "versions": environment.versions(),
            "commit": environment.commit(),
        }  # fmt: skip
        print(json.dumps(record), flush=True)


def main(arguments: list[str]) -> None:
    """Time every arm, or one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--busy", type=int, default=0, metavar="N")
    parser.add_argument("--network", choices=sorted({name for name, *_ in CASES}))
    parser.add_argument("--stem", choices=sorted({stem for _, stem, _ in CASES}))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--arm", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.arm:
        name, stem, side, way = options.arm
        print(json.dumps(arm(name, stem, int(side), way)))
        return
    cases = [
        case
        for case in CASES
        if options.network in (None, case[0]) and options.stem in (None, case[1])
    ]
    measure(cases, options.ways, options.busy)
