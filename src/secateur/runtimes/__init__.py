"""Runtimes of exported files, a module for each, with one protocol.

Importing this package does not import torch; :mod:`secateur.runtimes.eager` does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from secateur.errors import SecateurError
from secateur.runtimes.onnx_runtime import SATURATION_FREE, OnnxRuntime, session_options
from secateur.runtimes.open_vino import OpenVino
from secateur.runtimes.protocol import Array, Runtime

__all__ = [
    "RUNTIMES",
    "SATURATION_FREE",
    "Array",
    "OnnxRuntime",
    "OpenVino",
    "Runtime",
    "open_file",
    "session_options",
]

RUNTIMES: dict[str, Callable[[Path, int], Runtime]] = {
    OnnxRuntime.name: OnnxRuntime,
    OpenVino.name: OpenVino,
}
"""From a runtime's name to a function that opens a file with a number of threads."""


def open_file(path: Path, threads: int, runtime: str = OnnxRuntime.name) -> Runtime:
    """Load an ONNX file into the runtime of that name.

    Args:
        path: A float or quantized file of Secateur.
        threads: Threads inside one operator.
        runtime: One of :data:`RUNTIMES`.

    Raises:
        SecateurError: The runtime is unknown, not installed, or cannot run the file.
    """
    if runtime not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        raise SecateurError("unknown runtime", expected=f"one of {known}", found=runtime)
    return RUNTIMES[runtime](path, threads)
