"""The table that ``secateur bench`` prints."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.table import Table

from secateur.benchmark.comparison import Bench, Timed
from secateur.report import numbers
from secateur.statistics import QUIET, ratio_of_medians, spread


def render(found: Bench) -> Iterator[Table | str]:
    """The table, and what must be said with it."""
    batches = sorted(found.rows[0].samples)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    for heading in _headings(batches):
        table.add_column(heading, justify="right")
    for row in found.rows:
        table.add_row(row.title, *_cells(row, found.rows[0], batches))
    yield table
    n = len(found.rows[0].samples[batches[0]])
    yield (
        f"{found.about['processor']}; {found.threads} threads; n = {n} turns, A B A B; median "
        "(p10 to p90); ratio of medians with its 95 % bootstrap interval; start and memory in a "
        "new process."
    )
    if found.restless > QUIET:
        yield (
            f"NOISY MACHINE: p10 to p90 spans {100 * found.restless:.0f} % of the median (quiet "
            f"is below {100 * QUIET:.0f} %): trust ratios, not milliseconds, or repeat when idle."
        )


def _headings(batches: list[int]) -> Iterator[str]:
    yield "size"
    yield f"ms, batch {batches[0]}"
    yield "faster than first"
    for size in batches[1:]:
        yield f"images/s, batch {size}"
    yield from ("opening, ms", "first image, ms", "memory")


def _cells(row: Timed, base: Timed, batches: list[int]) -> Iterator[str]:
    one = row.samples[batches[0]]
    typical = spread(one)
    yield numbers.size(row.size_bytes)
    yield f"{typical.value:.3f} ({typical.low:.3f} to {typical.high:.3f})"
    if row is base:
        yield numbers.NONE
    else:
        ratio = ratio_of_medians(base.samples[batches[0]], one)
        yield f"{numbers.times(ratio.value)} [{ratio.low:.2f}, {ratio.high:.2f}]"
    for size in batches[1:]:
        yield f"{1e3 * size / float(np.median(row.samples[size])):,.0f}"
    yield f"{row.start.open_ms:.0f}"
    yield f"{row.start.first_ms:.1f}"
    yield numbers.size(row.start.peak_bytes)
