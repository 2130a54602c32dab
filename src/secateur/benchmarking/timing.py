"""Latency of a batch, cold start and peak memory.

All timings use one protocol (:func:`latencies`): candidates take turns; in each turn there is a
pause, some untimed runs, and one timed run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from secateur.runtimes import OpenVino, Runtime, open_file

REST = 0.01
"""Seconds of pause before a turn: OpenMP threads of the previous turn spin for milliseconds."""
SETTLE = 5
"""Untimed runs of one image after the pause, until idle cores are awake. With a single untimed run,
some turns of a small network on two threads still take several times too long."""
SETTLE_BATCH = 1
"""Untimed runs of a larger batch, one of which takes longer than a core needs to wake up."""


def latencies(
    runtimes: Mapping[str, Runtime],
    images: npt.NDArray[np.float32],
    warmup: int,
    repeats: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Time each runtime on one batch, taking turns: A B C A B C ...

    Taking turns spreads slow periods of a machine over all candidates, so that ratios are reliable
    even if absolute times drift. Each turn pauses for :data:`REST` seconds, runs :data:`SETTLE`
    times untimed (:data:`SETTLE_BATCH` for more than one image), then once timed. Thus caches and
    threads of the previous candidate do not affect the result.

    Args:
        runtimes: Runtimes to time, by name.
        images: One batch, float32 (N, C, R, R).
        warmup: Untimed rounds at the start.
        repeats: Timed rounds.

    Returns:
        For each name, the milliseconds of each timed round, float64 (repeats,), in order.

    Raises:
        ValueError: ``images`` is not a batch, or ``repeats`` is not positive.
    """
    if images.ndim != 4 or images.shape[0] < 1:
        raise ValueError(f"need a batch of shape (N, C, R, R), found {images.shape}")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"need repeats >= 1 and warmup >= 0, found {repeats} and {warmup}")
    settle = SETTLE if len(images) == 1 else SETTLE_BATCH
    samples = {name: np.empty(repeats) for name in runtimes}
    for turn in range(-warmup, repeats):
        for name, runtime in runtimes.items():
            time.sleep(REST)
            for _ in range(settle):
                runtime.run(images)
            start = time.perf_counter_ns()
            runtime.run(images)
            elapsed = time.perf_counter_ns() - start
            if turn >= 0:
                samples[name][turn] = elapsed / 1e6
    return samples


class Openable(Protocol):
    """A candidate that can be opened in a new process; picklable."""

    def prepare(self) -> None:
        """Import the libraries that :meth:`open` needs; not part of the cold start."""

    def open(self) -> Runtime:
        """Load the file and prepare it to run."""


@dataclass(frozen=True)
class Start:
    """The cold start of a network in a new process, after the imports.

    Attributes:
        open_ms: Time to read, decode and optimize the graph, in milliseconds.
        first_ms: Time of the first inference, in milliseconds.
        peak_bytes: Largest growth of the process's memory while it opened the network and ran the
            batches; 0 if the system does not report it.
    """

    open_ms: float
    first_ms: float
    peak_bytes: int


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file on a runtime; an :class:`Openable` that does not need torch.

    Attributes:
        path: The file.
        threads: Inside one operator.
        runtime: One of :data:`secateur.runtimes.RUNTIMES`.
    """

    path: Path
    threads: int
    runtime: str

    def prepare(self) -> None:
        """Import the runtime."""
        if self.runtime == OpenVino.name:
            import_module("openvino")

    def open(self) -> Runtime:
        """Load it."""
        return open_file(self.path, self.threads, self.runtime)


def memory_mb(
    files: Mapping[str, Path], image: npt.NDArray[np.float32], threads: int, runtime: str
) -> dict[str, float]:
    """Measure the peak memory of each file, opened and run in a new process.

    Args:
        files: From name to ONNX file.
        image: float32 (1, C, R, R).
        threads: Threads inside one operator.
        runtime: One of :data:`secateur.runtimes.RUNTIMES`.

    Returns:
        From name to MB (10^6 bytes) without libraries; empty if the system does not report it.
    """
    peaks = {
        name: cold_start(OnnxFile(path, threads, runtime), image).peak_bytes / 1e6
        for name, path in files.items()
    }
    return {name: round(peak, 2) for name, peak in peaks.items() if peak > 0}


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
    """Peak resident bytes of this process since the last ``reset``; 0 if unknown.

    This is VmHWM of Linux. Unlike ``ru_maxrss``, it does not include the parent process before the
    fork.
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
