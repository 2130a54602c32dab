"""Progress on stderr: bars with the remaining time on a terminal, else plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from secateur.escaping import printable

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print one plain line, with control characters escaped."""
    stderr.print(printable(line), markup=False)


def table(headings: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Format a plain table, control characters escaped: first column left, others right."""
    result = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number, heading in enumerate(headings):
        result.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        result.add_row(*(Text(printable(cell)) for cell in row))
    return result


class Ticker:
    """Counts finished steps; made by :func:`progress`."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.done, self.note = label, total, done, ""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report ``steps`` more finished steps; ``note`` is shown after the count."""
        self.done += steps
        self.note = note or self.note


class _Bar(Ticker):
    def __init__(self, label: str, total: int, done: int, bar: Progress) -> None:
        super().__init__(label, total, done)
        self._bar = bar
        self._task = bar.add_task(label, total=total, completed=done, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        super().advance(steps, note)
        self._bar.update(self._task, completed=self.done, note=self.note)


class _Lines(Ticker):
    """Prints at most one line every ``EVERY`` seconds, to keep logs short."""

    EVERY = 15.0

    def __init__(self, label: str, total: int, done: int) -> None:
        super().__init__(label, total, done)
        self._done_before = done  # a resumed training starts at this count
        self._start = self._last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        super().advance(steps, note)
        now = time.monotonic()
        if now - self._last < self.EVERY and self.done < self.total:
            return
        self._last, elapsed = now, now - self._start
        left = elapsed / max(1, self.done - self._done_before) * (self.total - self.done)
        tail = f"  {self.note}" if self.note else ""
        say(f"{self.label}  {self.done}/{self.total}  {elapsed:.0f} s, {left:.0f} s left{tail}")


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Ticker]:
    """Show the progress of ``total`` steps, ``done`` of them already finished, during the block."""
    if not stderr.is_terminal:
        yield _Lines(label, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=stderr) as bar:
        yield _Bar(label, total, done, bar)
