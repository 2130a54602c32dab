"""Comparison of files and networks, timed in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from secateur import environment
from secateur.benchmarking.candidates import ClassifierShape, list_candidates, shape_of
from secateur.benchmarking.timing import Start, cold_start, latencies
from secateur.console import progress
from secateur.disk import write_json
from secateur.statistics import noise


@dataclass(frozen=True)
class CandidateResult:
    """The measurements of one candidate.

    Attributes:
        title: Name of the candidate.
        size_bytes: Size of the file; for an eager network, of its parameters and buffers.
        samples: From batch size to the milliseconds of each counted turn, in order.
        start: Cold start in a new process.
    """

    title: str
    size_bytes: int
    samples: dict[int, npt.NDArray[np.float64]]
    start: Start


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`benchmark`.

    Attributes:
        rows: One result for each candidate; the first is the baseline.
        threads: Threads inside one operator.
        about: Processor, versions and commit.
    """

    rows: list[CandidateResult]
    threads: int
    about: dict[str, Any]

    @property
    def noise(self) -> float:
        """The largest spread of a row at the smallest batch: (p90 - p10) / median."""
        return max(noise(row.samples[min(row.samples)]) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with raw samples, as plain data."""
        rows = [
            asdict(row)
            | {"samples": {str(k): np.round(v, 5).tolist() for k, v in row.samples.items()}}
            for row in self.rows
        ]
        return {"rows": rows, "threads": self.threads, **self.about}


def benchmark(
    files: Sequence[str | Path | nn.Module],
    against: Sequence[str] = (),
    *,
    threads: int = 2,
    batches: tuple[int, ...] = (1, 32),
    repeats: int = 200,
    warmup: int = 20,
) -> Comparison:
    """Compare files: latency, throughput, cold start and memory.

    Latencies are measured by :func:`secateur.benchmarking.timing.latencies`, on images of noise.

    Args:
        files: ``.onnx`` or ``.sec`` files with the same input and output, and modules of PyTorch.
        against: Baselines: torchvision networks, runtimes or files; see
            :func:`secateur.benchmarking.candidates.list_candidates`.
        threads: Threads inside one operator.
        batches: Batch sizes; sizes above 1 measure throughput, with a quarter of the turns.
        repeats: Counted turns at batch 1.
        warmup: Uncounted turns before them.

    Returns:
        The raw samples of each candidate, the baseline first.

    Raises:
        SecateurError: A file is missing or damaged, shapes differ, or a file cannot be run.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> path = secateur.export(network, "net.onnx", (1, 8, 8))
        >>> result = secateur.benchmark([path, network], batches=(1,), repeats=3, warmup=0)
        >>> [row.title for row in result.rows]
        ['net.onnx', 'Sequential (eager PyTorch)']
        >>> result.rows[0].samples[1].shape  # milliseconds of each turn
        (3,)
    """
    sources = [file if isinstance(file, nn.Module) else Path(file) for file in files]
    candidates = list_candidates(sources, against, threads)
    shape = shape_of(next(source for source in sources if isinstance(source, Path)))
    images = _noise(shape, max(batches))
    starts = [cold_start(candidate, images[:1]) for candidate in candidates]
    runtimes = {str(place): candidate.open() for place, candidate in enumerate(candidates)}
    samples: dict[int, dict[str, npt.NDArray[np.float64]]] = {}
    with progress("bench", len(batches)) as tick:
        for size in batches:
            turns = repeats if size == 1 else max(1, repeats // 4)
            samples[size] = latencies(runtimes, images[:size], warmup, turns)
            tick.advance(note=f"batch {size}")
    rows = [
        CandidateResult(
            candidate.title,
            candidate.size_bytes,
            {size: of_batch[str(place)] for size, of_batch in samples.items()},
            starts[place],
        )
        for place, candidate in enumerate(candidates)
    ]
    return Comparison(rows, threads, _about())


def _about() -> dict[str, Any]:
    """The machine and versions of the measurement."""
    return {
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }


def _noise(shape: ClassifierShape, count: int) -> npt.NDArray[np.float32]:
    size = (count, shape.channels, shape.side, shape.side)
    return np.random.default_rng(0).standard_normal(size).astype(np.float32)


def save(result: Comparison, path: Path) -> None:
    """Write every raw sample as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result.to_dict())
