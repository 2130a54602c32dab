"""One bad input, the command that reads it, and the expected result."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Content = bytes | str | Callable[[Path], object]
"""Bytes or text of a file, or a function that creates something at a path."""

REJECTED, ACCEPTED, EITHER = "rejected", "accepted", "either"
SECONDS = 600
"""Time limit of a command; generous, because some inputs test a limit on processor time."""
MEBIBYTES = 1536
"""Memory limit of a command; torch and ONNX Runtime alone need 400."""
TRIAL = 4 * 2**10 + 100
"""The same if an ONNX file is run in a separate process, which has a limit of 4 GiB."""


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        kind: Kind of input, the heading of its table.
        name: Short description of the input.
        command: Arguments of ``secateur``; after ``-c``, Python code.
        files: From path to content; paths are relative to the folder in which the command runs.
        message: Pattern that stdout or stderr must match.
        ends: ``rejected``: one line on stderr and exit code ``code``; ``accepted``: exit code 0; or
            ``either``.
        code: Exit code if rejected: 2 for a given file, 1 for a stored result.
        mebibytes: Memory limit of the command.
        unchanged: File that the command must not change.
    """

    kind: str
    name: str
    command: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    message: str = ""
    ends: str = REJECTED
    code: int = 2
    mebibytes: int = MEBIBYTES
    unchanged: str | None = None

    @property
    def key(self) -> dict[str, str]:
        """Fields of its record that identify it."""
        if self.command[0] == "-c":
            return {"kind": self.kind, "name": self.name, "command": "Python"}
        shown = " ".join(["secateur", *self.command]).encode(errors="backslashreplace").decode()
        return {"kind": self.kind, "name": self.name, "command": shown[:300]}


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Create the files in ``folder``, an empty one, run the command there, and check the result."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    before = _bytes_of(folder, case.unchanged)
    code, seconds, mebibytes, output, errors = _measured(case.command, folder)
    faults = list(_faults(case, code, seconds, mebibytes, output, errors))
    if _bytes_of(folder, case.unchanged) != before:
        faults.append(f"{case.unchanged} was changed")
    last = errors.decode(errors="replace").strip().rpartition("\n")[2] if code else ""
    return case.key | {
        "ends": ACCEPTED if code == 0 else REJECTED,
        "code": code,
        "line": last.replace(f"{folder}/", "")[:300],
        "seconds": round(seconds, 2),
        "mebibytes": round(mebibytes),
        "faults": faults,
    }


_WAIT = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024], file)
"""
"""Runs a command and reports its exit code and peak memory in MiB. This must be a small process: on
Linux ``ru_maxrss`` includes the memory of the process that forked, and the benchmark is large."""


def _measured(command: tuple[str, ...], folder: Path) -> tuple[int, float, float, bytes, bytes]:
    """Run a command; return exit code, seconds, peak memory in MiB, stdout and stderr."""
    arguments = [sys.executable, *([] if command[0] == "-c" else ["-m", "secateur"]), *command]
    report, start = folder / ".report", time.monotonic()
    with (folder / ".out").open("w+b") as out, (folder / ".err").open("w+b") as err:
        process = subprocess.Popen(  # noqa: S603 (no shell)
            [sys.executable, "-S", "-c", _WAIT, str(report), *arguments],
            cwd=folder, stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - start
        out.seek(0)
        err.seek(0)
        code, mebibytes = json.loads(report.read_text()) if report.exists() else (-9, 0.0)
        return code, seconds, mebibytes, out.read(), err.read()


def _faults(
    case: Case, code: int, seconds: float, mebibytes: float, output: bytes, errors: bytes
) -> list[str]:
    faults, text = [], (output + errors).decode(errors="replace")
    allowed = {REJECTED: {case.code}, ACCEPTED: {0}, EITHER: {0, case.code}}[case.ends]
    if code not in allowed:
        faults.append(f"exit code {code}")
    reasons = re.findall(r"^secateur: ", errors.decode(errors="replace"), re.MULTILINE)
    if code and len(reasons) != 1:
        faults.append(f"{len(reasons)} error lines")
    faults += [sign for sign in ("Traceback", "internal error") if sign in text]
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
        faults.append("control characters")
    if not re.search(case.message, text):
        faults.append(f"does not say {case.message!r}")
    if seconds >= SECONDS:
        faults.append("no end")
    if mebibytes > case.mebibytes:
        faults.append(f"more than {case.mebibytes} MiB")
    return faults


def _bytes_of(folder: Path, name: str | None) -> bytes | None:
    return None if name is None else (folder / name).read_bytes()
