"""The environment of a measurement: processor, versions, commit, device."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from secateur import __version__
from secateur.errors import UsageError

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy")


@functools.cache
def processor() -> str:
    """Model name of the processor with the instruction sets that determine its int8 speed."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in info.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = fields.get("flags", "").split()
    vector = [flag for flag in ("avx2", "avx512f", "avx_vnni", "avx512_vnni") if flag in flags]
    model = fields.get("model name", platform.machine())
    return f"{model}, {os.cpu_count()} cores" + (f", {' '.join(vector)}" if vector else "")


def may_saturate() -> bool:
    """Whether int8 kernels may add two products in saturating 16 bits: on x86 without VNNI.

    True if the instruction sets are not known.
    """
    return "vnni" not in processor()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, Secateur and the libraries that affect numerical results."""
    own = {"python": platform.python_version(), "secateur": __version__}
    return own | {name: metadata.version(name) for name in _PACKAGES}


@functools.cache
def commit() -> str:
    """Commit of Secateur's checkout, with ``-dirty`` if changed; ``unknown`` without one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]  # constant arguments, no user input
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout.strip()

    try:
        # If installed inside another project's checkout, its commit is not Secateur's.
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent.parent:
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cores() -> int:
    """Number of cores that this process may use: fewer than the machine's in some containers.

    Example:
        >>> cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """Number of threads of torch."""
    import torch  # imported here, because packed files are read without torch

    return torch.get_num_threads()


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: The device does not exist on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            "no such device", where="--device", found=name, remedy="use auto, cpu or cuda"
        ) from error
    return device
