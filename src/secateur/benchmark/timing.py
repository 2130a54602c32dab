"""How long a batch of images takes, how a network starts from cold, and what memory it needs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from secateur.runtimes import Runtime

REST = 0.01
"""Seconds before a turn in which OpenMP's threads, which spin on for milliseconds, come to rest."""
SETTLE = 5
"""Runs after it that do not count: a core that fell asleep meanwhile wakes late, and after one run
alone some turns of a small network on two threads still come out several times too long."""


def latencies(
    runtimes: Mapping[str, Runtime],
    images: npt.NDArray[np.float32],
    warmup: int,
    repeats: int,
    settle: int = 0,
    rest: float = 0.0,
) -> dict[str, npt.NDArray[np.float64]]:
    """Time each runtime on one batch, taking turns: A B C A B C ...

    Turns share a machine's slow moments evenly, so that ratios hold where absolute times drift.

    Args:
        runtimes: What to time, by name.
        images: One batch, float32 (N, C, R, R).
        warmup: Rounds that are run first and not counted.
        repeats: Rounds that are counted.
        settle: Runs at the start of each turn that are not counted, so that what the one before
            left in the caches, and its threads that still spin, are not put down to this one.
        rest: Seconds before each turn, in which nothing runs; see :data:`REST`, and with it settle
            for :data:`SETTLE` runs.

    Returns:
        For each name, the milliseconds of each counted round, shape (repeats,), in order.

    Raises:
        ValueError: ``images`` is not a batch, or ``repeats`` is not positive.
    """
    if images.ndim != 4 or images.shape[0] < 1:
        raise ValueError(f"need a batch of shape (N, C, R, R), found {images.shape}")
    if repeats < 1 or warmup < 0 or settle < 0:
        raise ValueError(
            f"need repeats >= 1, warmup >= 0 and settle >= 0, "
            f"found {repeats}, {warmup} and {settle}"
        )
    samples = {name: np.empty(repeats) for name in runtimes}
    for turn in range(-warmup, repeats):
        for name, runtime in runtimes.items():
            if rest:
                time.sleep(rest)
            for _ in range(settle):
                runtime.run(images)
            start = time.perf_counter_ns()
            runtime.run(images)
            spent = time.perf_counter_ns() - start
            if turn >= 0:
                samples[name][turn] = spent / 1e6
    return samples


class Openable(Protocol):
    """Something that becomes a runtime; pickled into a process of its own."""

    def prepare(self) -> None:
        """Import what :meth:`open` needs: a program has done so before it meets its network."""

    def open(self) -> Runtime:
        """Read the file and make it ready to run."""


@dataclass(frozen=True)
class Start:
    """A network's start in a process that has just begun, libraries already imported.

    Attributes:
        open_ms: From nothing to ready: reading, decoding, optimizing the graph.
        first_ms: The first image after that.
        peak_bytes: How far the process grew beyond its size before, at most, while it opened the
            network and ran the batches; 0 where the system does not tell.
    """

    open_ms: float
    first_ms: float
    peak_bytes: int


def cold_start(network: Openable, images: npt.NDArray[np.float32], runs: int = 5) -> Start:
    """Open a network in a new process and run ``images``, float32 (N, C, R, R), ``runs`` times.

    Raises:
        SecateurError: The network cannot be opened or run.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_start, network, images, runs).result()


def _start(network: Openable, images: npt.NDArray[np.float32], runs: int) -> Start:
    network.prepare()
    before = _peak_memory(reset=True)
    begin = time.perf_counter()
    runtime = network.open()
    ready = time.perf_counter()
    runtime.run(images[:1])
    first = time.perf_counter()
    for _ in range(runs - 1):
        runtime.run(images)
    return Start(1e3 * (ready - begin), 1e3 * (first - ready), _peak_memory() - before)


def _peak_memory(reset: bool = False) -> int:
    """Most bytes this process has ever held, or holds now after a ``reset``; 0 if unknown.

    Linux's VmHWM: unlike ``ru_maxrss`` it is of this program alone, not of the one that forked it.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0
