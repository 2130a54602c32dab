"""Times networks with widths chosen by multiply-accumulates or by measured latency.

Run: python -m benchmarks width_latency [--threads 2] [--repeats 200] > results/width_latency.jsonl
Every arm of a network, fp32 and int8, is timed in one run, taking turns. Prints one JSON line for
each arm and precision: median, 10th and 90th percentile of milliseconds for one image, the
prediction from layers, and the remaining fraction of importance; arms with similar fractions are
comparable.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from secateur import environment
from secateur.benchmarking.cost import macs, parameters
from secateur.benchmarking.layer_timer import LayerTimer, Precision
from secateur.benchmarking.network_timer import NetworkTimer
from secateur.benchmarking.timing import latencies
from secateur.errors import NetworkError
from secateur.models.build import build_network
from secateur.pruning.channels import Prunable, Scores
from secateur.pruning.costs import Costs
from secateur.pruning.find import find_prunable
from secateur.pruning.geometry import Geometry
from secateur.pruning.importance import channel_importance
from secateur.pruning.latency import Choice, losses, reach_latency
from secateur.pruning.plan import Plan
from secateur.pruning.planner import plan_widths
from secateur.pruning.surgery import remove
from secateur.recipe import Network
from secateur.runtimes import Runtime

CASES = [
    ("shufflenet_v2_x1_0", "paper", 224, 3),
    ("mobilenet_v2", "paper", 224, 3),
    ("shufflenet_v2_x1_0", "stride1", 28, 1),
    ("mobilenet_v2", "stride1", 28, 1),
]
Arm = tuple[str, dict[str, int], float | None]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


class Case:
    """A network with its prunable channels."""

    def __init__(self, name: str, stem: str, side: int, channels: int, threads: int) -> None:
        config = Network(name=name, stem=stem, resolution=side)
        self.model = build_network(config, channels, 10).eval()
        self.about = {"network": name, "geometry": f"{side}x{side} stem={stem}"}
        self.shape = (channels, side, side)
        self.threads = threads
        self.prunable: Prunable = find_prunable(self.model, torch.zeros(1, *self.shape))
        self.scores: dict[str, Scores] = channel_importance(self.model, self.prunable)

    def plan(self, widths: Mapping[str, int]) -> Plan:
        """The plan for given widths."""
        return plan_widths(self.model, self.prunable, widths, self.scores, 1)

    def local(self, fraction: float, round_to: int) -> dict[str, int]:
        """The same fraction of every group."""
        return {group.name: group.width(fraction, round_to) for group in self.prunable.groups}

    def by_macs(self, target: float) -> dict[str, int]:
        """Widths of the smallest common fraction, in 256ths, that reaches the target."""
        costs = Costs(self.model, self.prunable, "macs")
        every = (self.local(step / 256, 8) for step in range(256))
        return next(widths for widths in every if costs.at(widths) <= target * costs.full)

    def by_latency(self, target: float, precision: Precision) -> tuple[dict[str, int], float]:
        """Widths by measured layers, and the predicted milliseconds."""
        layer_timer = LayerTimer(precision, self.threads)
        network_timer = NetworkTimer(self.shape, precision, self.threads)
        model, prunable, scores = self.model, self.prunable, self.scores
        try:
            result = reach_latency(
                model, prunable, scores, self.plan, target, 8, layer_timer, network_timer
            )
        finally:
            layer_timer.save()
        return result.widths, result.predicted

    def kept(self, widths: Mapping[str, int]) -> float:
        """Product over all layers of the remaining fraction of importance."""
        loss = 0.0
        for group in self.prunable.groups:
            layers = len(list(group.makers()))
            loss += layers * losses(self.scores[group.name], group.steps)[widths[group.name]]
        return float(np.exp(-loss))

    def by_kept(self, kept: float, precision: Precision) -> tuple[dict[str, int], float]:
        """The fastest widths with the same importance, and the predicted milliseconds."""
        layer_timer = LayerTimer(precision, self.threads)
        network_timer = NetworkTimer(self.shape, precision, self.threads)
        milliseconds, reference = network_timer.time(
            network_timer.load(self.model), layer_timer.reference
        )
        full = milliseconds / reference
        geometry = Geometry(self.model, self.prunable)
        choice = Choice(self.prunable, self.scores, geometry, 8, layer_timer, full)
        low, high, best = 0.0, 1.0, choice.within(full)
        for _ in range(10):
            middle = (low + high) / 2
            widths = choice.within(middle * full)
            if choice.kept(widths) >= kept:
                best, high = widths, middle
            else:
                low = middle
        layer_timer.save()
        return best, choice.latency(best) * reference

    def arms(self, targets: Sequence[float]) -> Iterator[Arm]:
        """Every arm with its widths and, if predicted, its milliseconds."""
        yield "unpruned", {group.name: group.steps for group in self.prunable.groups}, None
        yield "half of every group, round_to 1", self.local(0.5, 1), None
        yield "half of every group, round_to 8", self.local(0.5, 8), None
        halved = self.by_macs(0.5)
        yield "half the macs", halved, None
        for precision in PRECISIONS:
            arm = f"{precision} latency, as much kept as of half the macs"
            yield arm, *self.by_kept(self.kept(halved), precision)
            for target in targets:
                arm = f"{precision} latency {target:g}"
                try:
                    yield arm, *self.by_latency(target, precision)
                except NetworkError as error:  # not reachable on this machine
                    print(json.dumps({"arm": arm, "error": str(error)}), flush=True)


def measure(case: Case, repeats: int, targets: Sequence[float]) -> None:
    """Time every arm of one network in turns, and print the results."""
    networks: dict[str, nn.Module] = {}
    about: dict[str, dict[str, Any]] = {}
    for arm, widths, predicted in case.arms(targets):
        networks[arm] = remove(case.model, case.plan(widths))
        about[arm] = {
            "macs": macs(networks[arm], case.shape),
            "parameters": parameters(networks[arm]),
            "kept": float(f"{case.kept(widths):.3g}"),
            "predicted_ms": predicted and round(predicted, 4),
        }
    runtimes: dict[str, Runtime] = {}
    for precision in PRECISIONS:
        network_timer = NetworkTimer(case.shape, precision, case.threads)
        runtimes |= {
            f"{arm}|{precision}": network_timer.load(network) for arm, network in networks.items()
        }
    image = np.random.default_rng(0).standard_normal((1, *case.shape)).astype(np.float32)
    for key, samples in latencies(runtimes, image, 20, repeats).items():
        arm, precision = key.split("|")
        low, median, high = np.percentile(samples, [10, 50, 90])
        line = {
            **case.about, "arm": arm, "precision": precision, "ms": round(median, 4),
            "low": round(low, 4), "high": round(high, 4), "least": round(samples.min(), 4),
            "n": repeats, **about[arm], "threads": case.threads,
            "runtime": f"onnxruntime {onnxruntime.__version__}",
            "processor": environment.processor(), "versions": environment.versions(),
            "commit": environment.commit(),
        }  # fmt: skip
        print(json.dumps(line), flush=True)


def main(arguments: list[str]) -> None:
    """Measure every case, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--case", type=int, choices=range(len(CASES)), action="append")
    parser.add_argument("--target", type=float, nargs="*", default=[0.5])
    options = parser.parse_args(arguments)
    for number in options.case or range(len(CASES)):
        measure(Case(*CASES[number], options.threads), options.repeats, options.target)
