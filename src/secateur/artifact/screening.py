"""Screening of an untrusted ONNX file in a separate process.

The process reads the file within limits and optionally runs it once. Its memory and time are
limited. If it crashes, hangs or runs out of memory, this process reports an error of one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from secateur.errors import ArtifactError, SecateurError
from secateur.onnx_ir.reader import MOST_BYTES, read_onnx

MEMORY = 4 * 2**30
"""Memory limit of the process, in bytes, in addition to four times the size of the file."""

SECONDS = 60
"""Limit on processor time, in seconds; the limit on wall-clock time is five times as long."""

DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"))
"""Operator domains that ONNX Runtime provides."""


def screen(
    path: Path,
    *,
    run: bool = False,
    size: int | None = None,
    limit: int = MOST_BYTES,
    seconds: int = SECONDS,
    memory: int = MEMORY,
) -> None:
    """Read an ONNX file, and optionally run it once, in a separate process.

    Args:
        path: The file.
        run: Also run it, on one image of zeros.
        size: Height and width of that image, if the file does not fix them.
        limit: Largest size of the file and its external data, in bytes.
        seconds: See :data:`SECONDS`.
        memory: See :data:`MEMORY`.

    Raises:
        ArtifactError: The file is rejected, or cannot be read or run within the limits.
    """
    settings = {
        "path": str(path), "run": run, "size": size, "limit": limit, "seconds": seconds,
        "memory": memory,
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", __name__, json.dumps(settings)]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(  # noqa: S603 (no shell, and the path is inside JSON)
            command, capture_output=True, timeout=5 * seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise _exceeded(path, f"no end after {5 * seconds} s") from None
    if done.returncode == 0:
        return
    try:
        line = json.loads(done.stdout.splitlines()[-1])["error"]
    except (ValueError, KeyError, TypeError, IndexError):
        reason = f"the process ended with {_ending(done.returncode)}"
        raise _exceeded(path, reason) from None
    raise ArtifactError(line)


def check_operators(model: onnx.ModelProto, path: Path) -> None:
    """Check that a graph has no subgraphs, functions or operators of other domains.

    Raises:
        ArtifactError: It has one; the message names the operator.
    """
    for node in model.graph.node:
        inner = any(a.HasField("g") or len(a.graphs) > 0 for a in node.attribute)
        if node.domain not in DOMAINS or inner or model.functions:
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise ArtifactError(
                "a network that is not run",
                where=path,
                expected="operators of ONNX or ONNX Runtime, without loops, branches or functions",
                found=f"{name} {node.name!r:.60}",
            )


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _exceeded(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        "an ONNX file that breaks the process that reads it, or takes too much memory or time",
        where=path, found=reason, remedy="do not open it",
    )  # fmt: skip


# ---- in the other process


def _limit_process(seconds: int, memory: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows: the time limit of the parent remains
        return
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_DATA, memory),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, hard))


def _image(model: onnx.ModelProto, size: int | None) -> dict[str, np.ndarray] | None:
    """Zeros for the input, or None if its shape is not fixed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        return None
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    if len(shape) == 4:
        shape = [shape[0] or 1, shape[1], *(side or size or 0 for side in shape[2:])]
    if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT or 0 in shape:
        return None
    return {inputs[0].name: np.zeros(shape, np.float32)}


def _run_once(path: Path, model: onnx.ModelProto, size: int | None) -> None:
    import onnxruntime

    from secateur.runtimes.onnx_runtime import session_options

    session = onnxruntime.InferenceSession(
        path, session_options(1), providers=["CPUExecutionProvider"]
    )
    image = _image(model, size)
    if image is not None:
        session.run(None, image)


def _main(text: str) -> None:
    settings = json.loads(text)
    path = Path(settings["path"])
    files = path.stat().st_size if path.is_file() else 0
    _limit_process(settings["seconds"], settings["memory"] + 4 * files)
    try:
        model = read_onnx(path, settings["limit"])
        if settings["run"]:
            check_operators(model, path)
            _run_once(path, model, settings["size"])
    except SecateurError as error:
        line = str(error)
    except MemoryError:
        line = f"an ONNX file that takes too much memory ({path})"
    except Exception as error:  # the exceptions of the two libraries have no public base class
        line = str(SecateurError("ONNX Runtime cannot run the file", where=path, found=error))
    else:
        return
    print(json.dumps({"error": line[:2000]}))
    sys.exit(1)


if __name__ == "__main__":
    _main(sys.argv[1])
