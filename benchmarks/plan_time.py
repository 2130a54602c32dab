"""Processor time of planning a removal by a fraction, and by an objective.

Run: python -m benchmarks plan_time results/plan_time.jsonl [--repeat N] [NETWORK ...]
A network is one of torchvision, or ``timm NAME``. Weights are random; the criterion is L2. Each
record has the least of N times of each kind. `python -m benchmarks networks` prints them in its
page, with the ratio to planning by the fraction 0.5.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.common import records
from benchmarks.networks import build

NETWORKS = (
    *("resnet50", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"),
    "timm vit_tiny_patch16_224",
)
KINDS: dict[str, dict[str, Any]] = {
    "fraction": {"fraction": 0.5},
    "macs": {"objective": "macs", "target": 0.5},
    "parameters": {"objective": "parameters", "target": 0.5},
}


def seconds(network: nn.Module, images: Tensor, options: dict[str, Any]) -> float:
    """Processor time of one plan."""
    start = time.process_time()
    secateur.plan_removal(network, images, **options)
    return time.process_time() - start


def measure(name: str, repeat: int) -> dict[str, float]:
    """The least processor time of each kind of plan; kinds alternate."""
    network, images = build(name)
    every = [
        {kind: seconds(network, images[:1], options) for kind, options in KINDS.items()}
        for _ in range(repeat)
    ]
    return {kind: min(each[kind] for each in every) for kind in KINDS}


def main(arguments: list[str]) -> None:
    """Measure each network, and append a record."""
    parser = argparse.ArgumentParser(prog="benchmarks plan_time", description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seconds(*build("resnet18"), KINDS["macs"])  # the first plan imports modules
    for name in chosen.networks:
        times = {kind: round(value, 2) for kind, value in measure(name, chosen.repeat).items()}
        print(name, times, flush=True)
        record = {"network": name, "repeat": chosen.repeat, "seconds": times}
        records.append(chosen.records, record, ("timm", "torchvision"))
