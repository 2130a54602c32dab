"""Progress for people, on stderr: bars with the time left on a terminal, else plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
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

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print one plain line."""
    stderr.print(line, markup=False)


class Ticker:
    """Counts finished steps of one piece of work; made by :func:`progress`."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.done, self.note = label, total, done, ""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that ``steps`` more are done; ``note`` stands beside the count."""
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
    """A line at most every ``EVERY`` seconds, so that a log stays readable."""

    EVERY = 15.0

    def __init__(self, label: str, total: int, done: int) -> None:
        super().__init__(label, total, done)
        self._found_done = done  # in no time of ours: a resumed training starts there
        self._start = self._last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        super().advance(steps, note)
        now = time.monotonic()
        if now - self._last < self.EVERY and self.done < self.total:
            return
        self._last, spent = now, now - self._start
        left = spent / max(1, self.done - self._found_done) * (self.total - self.done)
        tail = f"  {self.note}" if self.note else ""
        say(f"{self.label}  {self.done}/{self.total}  {spent:.0f} s, {left:.0f} s left{tail}")


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Ticker]:
    """Show the progress of ``total`` steps, ``done`` of them earlier, while the block runs."""
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
