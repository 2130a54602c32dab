"""Run the command with no way to the network: a socket of the internet kills the process.

Run: python tests/helpers/socket_guard.py ARGUMENTS of the command

A seccomp filter of Linux refuses ``socket(AF_INET)`` and ``socket(AF_INET6)`` with SIGSYS, for this
process and all that it starts, whatever library asks: look-ups of names need such a socket too.
"""

from __future__ import annotations

import ctypes
import platform
import signal
import struct
import sys

_NUMBERS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""Architecture as the kernel names it, and the number of ``socket`` there."""
AVAILABLE = sys.platform == "linux" and platform.machine() in _NUMBERS
KILLED = -signal.SIGSYS if AVAILABLE else 0

_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the classic Berkeley packet filter
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_sockets() -> None:
    """From now on, a socket of the internet kills this process.

    Raises:
        OSError: The kernel allows no filters.
    """
    architecture, number = _NUMBERS[platform.machine()]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 0, 3, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 2, 0, 2),  # AF_INET
        (_JUMP_EQUAL, 1, 0, 10),  # AF_INET6
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program, library = _Program(len(steps), code), ctypes.CDLL(None, use_errno=True)
    for call in (
        (_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0),
    ):
        if library.prctl(*call):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid_sockets()
    if sys.argv[1:] == ["--connect"]:  # for the test of the guard itself
        import socket

        socket.getaddrinfo("example.org", 80)
        sys.exit("the guard let a look-up through")
    from secateur.cli.app import main

    main()
