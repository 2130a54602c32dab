"""Latency of several ways to run one network, in turns, and what their ratio is known to be."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from secateur.runtimes import Runtime
from secateur.runtimes.protocol import Array
from secateur.statistics import Interval

WARMUP = 20


def take_turns(
    runtimes: Mapping[str, Runtime], image: Array, repeats: int, rest: float = 0.0
) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of each runtime, A B C A B C ..., shape (repeats,) in order.

    Each turn runs the image twice and counts the second. The threads of OpenVINO spin for 1 ms
    after a run, whatever it is told, and a network's weights leave the cache during the turns of
    the others; neither belongs to the one whose turn it is.

    Args:
        runtimes: By name.
        image: Float32 (1, C, R, R).
        repeats: Turns that count, after :data:`WARMUP` that do not.
        rest: Seconds before each turn; threads of OpenMP, which spin longer, need some.
    """
    samples = {key: np.empty(repeats) for key in runtimes}
    for turn in range(-WARMUP, repeats):
        for key, runtime in runtimes.items():
            if rest:
                time.sleep(rest)
            runtime.run(image)
            start = time.perf_counter_ns()
            runtime.run(image)
            spent = time.perf_counter_ns() - start
            if turn >= 0:
                samples[key][turn] = spent / 1e6
    return samples


def speedup(
    slow: npt.NDArray[np.float64], fast: npt.NDArray[np.float64], draws: int = 2000
) -> Interval:
    """Ratio of the medians with its 95 % bootstrap interval; whole turns are drawn."""
    turns = np.random.default_rng(0).integers(len(slow), size=(draws, len(slow)))
    ratios = np.median(slow[turns], axis=1) / np.median(fast[turns], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(float(np.median(slow) / np.median(fast)), float(low), float(high))
