"""A simulated power cut: a process stops at a disk operation, and what was not flushed is lost.

Operations are counted through an audit hook. At the chosen one :class:`PowerCut` is raised, every
file that was written and not flushed since is cut to nothing, and no later operation takes place.
A rename counts as durable at once: that is the worst case for a file whose bytes are not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_active: list[_Cut] = []


class PowerCut(BaseException):
    """The power is off."""


def power_cuts(root: Path) -> Iterator[_Cut]:
    """Yield cuts below ``root`` at the first disk operation, the second, and so on."""
    moment = 0
    while True:
        moment += 1
        yield _Cut(root, moment)


class _Cut:
    """Context in which the power is cut at disk operation number ``moment``."""

    def __init__(self, root: Path, moment: int) -> None:
        self.root, self.left = root.resolve(), moment
        self.clean: dict[int, int] = {}  # inode: time of the last change that was flushed

    def __enter__(self) -> None:
        for path in self._files():
            self.note(path.stat())
        self._fsync, os.fsync = os.fsync, self._flushed  # type: ignore[assignment]
        _active.append(self)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        _active.remove(self)
        os.fsync = self._fsync
        if kind is PowerCut:
            for path in self._files():
                status = path.stat()
                if self.clean.get(status.st_ino) != status.st_mtime_ns:
                    path.write_bytes(b"")

    def note(self, status: os.stat_result) -> None:
        self.clean[status.st_ino] = status.st_mtime_ns

    def step(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise PowerCut

    def _flushed(self, number: int) -> None:
        self.step()
        self._fsync(number)
        self.note(os.fstat(number))

    def _files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink()]


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _active or event not in _EVENTS or not isinstance(arguments[0], str | bytes | Path):
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    cut = _active[-1]
    if Path(os.fsdecode(arguments[0])).absolute().is_relative_to(cut.root):
        cut.step()


sys.addaudithook(_watch)
