"""Files and networks timed in turns, with everything the times depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur import environment
from secateur.benchmark.candidates import Form, contenders, form_of
from secateur.benchmark.timing import REST, SETTLE, Start, cold_start, latencies
from secateur.console import progress
from secateur.statistics import noise
from secateur.store import write_json


@dataclass(frozen=True)
class Timed:
    """One contender's measurements.

    Attributes:
        title: Who.
        size_bytes: On disk; of an eager network, of its weights.
        samples: By batch size, the milliseconds of each counted turn in order.
        start: How it starts in a new process.
    """

    title: str
    size_bytes: int
    samples: dict[int, npt.NDArray[np.float64]]
    start: Start


@dataclass(frozen=True)
class Bench:
    """What a bench found.

    Attributes:
        rows: The contenders; all are compared with the first.
        threads: Inside one operator.
        about: Processor, versions, commit.
    """

    rows: list[Timed]
    threads: int
    about: dict[str, Any]

    @property
    def restless(self) -> float:
        """The worst spread of any row at batch 1, p10 to p90 over the median."""
        return max(noise(row.samples[min(row.samples)]) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything, raw samples too, as plain data."""
        rows = [
            asdict(row)
            | {"samples": {str(k): np.round(v, 5).tolist() for k, v in row.samples.items()}}
            for row in self.rows
        ]
        return {"rows": rows, "threads": self.threads, **self.about}


def bench(
    files: list[Path],
    against: list[str],
    *,
    threads: int = 2,
    batches: tuple[int, ...] = (1, 32),
    repeats: int = 200,
    warmup: int = 20,
) -> Bench:
    """Time files beside one another.

    Each turn rests, runs until it has settled, and counts the run after, see
    :func:`secateur.benchmark.timing.latencies`; the images are noise, on which no time depends.

    Args:
        files: ``.onnx`` or ``.sec``.
        against: See :func:`secateur.benchmark.candidates.contenders`.
        threads: Inside one operator.
        batches: Batch sizes; larger ones than 1 are for throughput, with a quarter of the turns.
        repeats: Turns that count, at batch 1.
        warmup: Turns before those.

    Raises:
        SecateurError: A file is missing, damaged or of another form, or cannot be run.
    """
    who = contenders(files, against, threads)
    images = _noise(form_of(files[0]), max(batches))
    starts = [cold_start(one, images[:1]) for one in who]
    runtimes = {str(place): one.open() for place, one in enumerate(who)}
    samples: dict[int, dict[str, npt.NDArray[np.float64]]] = {}
    with progress("bench", len(batches)) as tick:
        for size in batches:
            turns = repeats if size == 1 else max(1, repeats // 4)
            settle = SETTLE if size == 1 else 1  # a whole batch takes longer than a core wakes
            samples[size] = latencies(
                runtimes, images[:size], warmup, turns, settle=settle, rest=REST
            )
            tick.advance(note=f"batch {size}")
    rows = [
        Timed(one.title, one.size_bytes, {b: s[str(i)] for b, s in samples.items()}, starts[i])
        for i, one in enumerate(who)
    ]
    about = {
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }
    return Bench(rows, threads, about)


def _noise(form: Form, count: int) -> npt.NDArray[np.float32]:
    drawn = np.random.default_rng(0).standard_normal((count, form.channels, form.side, form.side))
    return drawn.astype(np.float32)


def save(found: Bench, path: Path) -> None:
    """Keep every raw sample, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found.to_dict())
