"""Estimates the duration of a compression from one short step on this machine."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from secateur.benchmarking.timing import REST, SETTLE
from secateur.compression.onnx_network import is_file
from secateur.compression.problem import Problem

STEP_IMAGES = 16
FIXED_SECONDS = 8.0
"""Fixed seconds of each candidate: planning, export, packing, timing."""
PER_QUANTIZED_IMAGE = 3.0
"""Approximate number of forward passes for each calibration or validation image of a candidate."""

ROUNDING_COST = 3.0
"""Duration of an epoch of training with rounding relative to fine-tuning, approximately."""

MERGING_FORWARDS = 100_000
"""Forward passes of an image that measure the losses of all merges, approximately: some 60 segments
with three passes of 500 images each."""

TIMINGS = 2
"""Number of timings of all candidates in turns: before the best one is priced, and after."""


@dataclass(frozen=True)
class Estimate:
    """Durations of the parts of a compression, in seconds.

    Attributes:
        step: Training step of one image, with the teacher's forward pass.
        forward: Inference of one image in PyTorch.
        training: Number of images of an epoch.
        evaluated: Number of images for calibration and evaluation of a candidate.
        tested: Number of test images.
        within: Limit of the search in seconds; None without one.
        turns: Number of turns when candidates are timed.
        tried: Number of candidates so far.
        pace: Measured over expected duration of candidates.
        rounding_epochs: Epochs of training with rounding, of each candidate.
    """

    step: float
    forward: float
    training: int
    evaluated: int
    tested: int
    within: float | None
    turns: int = 0
    tried: int = 0
    pace: float = 1.0
    rounding_epochs: int = 0

    @property
    def fixed(self) -> float:
        """Seconds of a candidate without its fine-tuning."""
        quantized = PER_QUANTIZED_IMAGE * self.forward * self.evaluated
        trained = self.rounding_epochs * ROUNDING_COST * self.epoch(1.0)
        return self.pace * (FIXED_SECONDS + quantized) + trained + self._timing(1)

    @property
    def verdict(self) -> float:
        """Seconds of the last timings, of the final test and of writing the results."""
        tested = self.pace * (FIXED_SECONDS + 2 * self.forward * self.tested)
        return tested + TIMINGS * self._timing(self.tried)

    def _timing(self, candidates: int) -> float:
        """Seconds to time a number of candidates and the given network in turns."""
        return self.turns * (candidates + 1) * (REST + (SETTLE + 1) * self.forward)

    @property
    def merging(self) -> float:
        """Seconds to measure the losses of all merges."""
        return self.pace * self.forward * MERGING_FORWARDS

    def epoch(self, kept: float) -> float:
        """Seconds of an epoch if a fraction ``kept`` of the network is left."""
        return self.pace * self.training * ((self.step - self.forward) * kept + self.forward)

    def candidate(self, epochs: int, kept: float) -> float:
        """Seconds of a candidate."""
        return self.fixed + epochs * self.epoch(kept)

    def epochs_that_fit(self, epochs: int, kept: float, elapsed: float) -> int:
        """The number of ``epochs`` of a candidate that fit within the limit."""
        if self.within is None:
            return epochs
        free = self.within - elapsed - self.verdict - self.fixed
        return max(0, min(epochs, int(free / self.epoch(kept))))

    def fits(self, elapsed: float, more: float) -> bool:
        """Whether ``more`` seconds and the final test fit within the limit."""
        return self.within is None or elapsed + more + self.verdict <= self.within

    def after(self, epochs: int, kept: float, seconds: float) -> Estimate:
        """The estimate after a candidate took ``seconds``; the slowest candidate sets the pace."""
        pace = self.pace * seconds / self.candidate(epochs, kept)
        return replace(self, pace=max(self.pace, pace), tried=self.tried + 1)

    def total(self, epochs: int, tries: int, trials: int, merges: int = 0) -> float:
        """Approximate total seconds, if half of the network is kept on average.

        Args:
            epochs: Of each candidate.
            tries: Number of widths.
            trials: Number of ways to choose channels.
            merges: Number of networks with merged layers.
        """
        tries += merges
        search = 2 * self.fixed + trials * self.epoch(0.5) + tries * self.candidate(epochs, 0.5)
        search += self.merging if merges else 0.0
        last = replace(self, tried=tries + 2).verdict
        return min(search + last, self.within or float("inf"))

    def left(self, elapsed: float) -> str:
        """The remaining time in words; empty without a limit."""
        return "" if self.within is None else duration(max(0.0, self.within - elapsed))


def duration(seconds: float) -> str:
    """Format a duration, for example ``2 min 10 s``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


@torch.enable_grad()
def measure_step(problem: Problem) -> tuple[float, float]:
    """Measure the seconds of training and inference of one image, on a copy of the network."""
    network = copy.deepcopy(problem.network)
    images = problem.sample.spread(STEP_IMAGES)
    inputs, labels = problem.prepare(images.pixels[:]), images.labels
    with torch.inference_mode():
        network.eval()(inputs)
        start = time.perf_counter()
        network(inputs)
        forward = (time.perf_counter() - start) / len(labels)
    if is_file(network):
        return forward, forward
    network.train()
    seconds = []
    for _ in range(2):  # the first one also allocates
        start = time.perf_counter()
        F.cross_entropy(network(inputs), labels).backward()
        seconds.append((time.perf_counter() - start) / len(labels))
    return seconds[-1] + forward, forward
