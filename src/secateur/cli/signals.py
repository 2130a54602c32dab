"""Makes SIGTERM and SIGHUP end a command as Ctrl-C does, with locks released."""

from __future__ import annotations

import multiprocessing
import signal
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C, as in a shell."""

_received: list[int] = []


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP from now on.

    A signal that is ignored (SIGHUP under ``nohup``) stays ignored.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def exit_code() -> int:
    """The exit code of an interrupted command: 128 plus the number of the signal."""
    return 128 + _received[0] if _received else INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    first = not _received
    _received.append(number)
    if first:
        # Ctrl-C reaches all processes of the terminal's group; these signals reach this process
        # only.
        for child in multiprocessing.active_children():
            child.terminate()
        raise KeyboardInterrupt
