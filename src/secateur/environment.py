"""Where a number was made: processor, versions, commit, device."""

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
    """Model name of the processor with the instruction sets that decide its int8 speed."""
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
    """Tell whether int8 kernels may add two products in 16 bits here: on x86 without VNNI.

    Where the instruction sets are not known, they may.
    """
    return "vnni" not in processor()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, Secateur and the libraries whose numerics matter."""
    own = {"python": platform.python_version(), "secateur": __version__}
    return own | {name: metadata.version(name) for name in _PACKAGES}


@functools.cache
def commit() -> str:
    """Commit of the checkout this runs from, with ``-dirty`` if changed; else ``unknown``."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]  # fixed words, no input of a user
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout.strip()

    try:
        # Installed inside somebody else's checkout, their commit would say nothing about us.
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent.parent:
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def threads() -> int:
    """Threads that torch computes with."""
    import torch  # here, so that packed files are read without it

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
