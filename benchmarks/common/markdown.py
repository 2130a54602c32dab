"""Tables of Markdown, and numbers with their intervals in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from secateur.report.numbers import fixed, signed, times
from secateur.statistics import Interval


def in_points(interval: Interval) -> Interval:
    """A difference of proportions in percentage points."""
    return Interval(*(100 * bound for bound in interval))


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" + " ---: |" * (len(header) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def ratio_text(interval: Interval) -> str:
    """``1.87× [1.80, 1.93]``."""
    return f"{times(interval.value)} [{fixed(interval.low)}, {fixed(interval.high)}]"


def drop_text(interval: Interval) -> str:
    """``+0.12 [-0.03, +0.27]``."""
    return f"{signed(interval.value)} [{signed(interval.low)}, {signed(interval.high)}]"


def aim_text(reached: bool, missed: str) -> str:
    """Whether an aim is reached."""
    return "reached" if reached else f"missed by {missed}"


def threads_text(threads: list[int]) -> str:
    """Numbers of threads in words: ``1 thread``, ``1, 2 threads``."""
    return f"{', '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"


def made_with(records: list[dict[str, Any]]) -> str:
    """Hardware, versions, threads and commits behind a table, in a line."""
    versions = ", ".join(f"{name} {number}" for name, number in records[-1]["versions"].items())
    threads = sorted({record["threads"] for record in records if "threads" in record})
    commits = ", ".join(sorted({record["commit"] for record in records}))
    processors = "; ".join(sorted({record["processor"] for record in records}))
    return f"{processors}; {threads_text(threads)}; {versions}; commit {commits}."
