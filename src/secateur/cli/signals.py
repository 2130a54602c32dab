"""SIGTERM and SIGHUP end a command as Ctrl-C does: one line, locks released, work resumable."""

from __future__ import annotations

import multiprocessing
import signal
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C, the shell's own."""

_received: list[int] = []


def interrupt_on_signals() -> None:
    """From now on raise KeyboardInterrupt where the process is told to end.

    A signal that is ignored (SIGHUP under ``nohup``) stays ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # there is no SIGHUP on Windows
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def exit_code() -> int:
    """The exit code of an interrupted command: 128 and the number of the signal."""
    return 128 + _received[0] if _received else INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    first = not _received
    _received.append(number)
    if first:
        # Ctrl-C reaches every process of a terminal's group; these signals reach this one alone.
        for child in multiprocessing.active_children():
            child.terminate()
        raise KeyboardInterrupt
