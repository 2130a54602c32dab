"""The table that ``secateur bench`` prints."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.table import Table

from secateur.benchmarking.comparison import CandidateResult, Comparison
from secateur.report import numbers
from secateur.statistics import QUIET, ratio_of_medians, spread
from secateur.wording import counted


def render(result: Comparison) -> Iterator[Table | str]:
    """Yield the table, its caption, and a warning if the machine is noisy."""
    batches = sorted(result.rows[0].samples)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    for heading in _headings(batches):
        table.add_column(heading, justify="right")
    for row in result.rows:
        table.add_row(row.title, *_cells(row, result.rows[0], batches))
    yield table
    n = len(result.rows[0].samples[batches[0]])
    yield (
        f"{result.about['processor']}; {counted(result.threads, 'thread')}; "
        f"n = {counted(n, 'turn')}, A B A B; median (p10 to p90); ratio of medians "
        "with its 95 % bootstrap interval; start and memory in a new process."
    )
    if result.noise > QUIET:
        yield (
            f"NOISY MACHINE: p10 to p90 spans {100 * result.noise:.0f} % of the median (quiet "
            f"is below {100 * QUIET:.0f} %): trust ratios, not milliseconds, or repeat when idle."
        )


def _headings(batches: list[int]) -> Iterator[str]:
    yield "size"
    yield f"ms, batch {batches[0]}"
    yield "faster than first"
    for size in batches[1:]:
        yield f"images/s, batch {size}"
    yield from ("opening, ms", "first image, ms", "memory")


def _cells(row: CandidateResult, base: CandidateResult, batches: list[int]) -> Iterator[str]:
    latency = row.samples[batches[0]]
    typical = spread(latency)
    yield numbers.size(row.size_bytes)
    yield f"{typical.value:.3f} ({typical.low:.3f} to {typical.high:.3f})"
    if row is base:
        yield numbers.NONE
    else:
        ratio = ratio_of_medians(base.samples[batches[0]], latency)
        yield f"{numbers.times(ratio.value)} [{ratio.low:.2f}, {ratio.high:.2f}]"
    for size in batches[1:]:
        yield f"{1e3 * size / float(np.median(row.samples[size])):,.0f}"
    yield f"{row.start.open_ms:.0f}"
    yield f"{row.start.first_ms:.1f}"
    yield numbers.size(row.start.peak_bytes)
