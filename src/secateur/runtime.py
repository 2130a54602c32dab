"""What runs an exported file, behind one small protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from secateur.errors import SecateurError

Array = npt.NDArray[np.float32]


class Runtime(Protocol):
    """A file, ready to run."""

    @property
    def name(self) -> str:
        """The runtime's name, for example ``onnxruntime``."""

    @property
    def version(self) -> str:
        """The runtime's version."""

    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""


class OnnxRuntime:
    """An ONNX file on the CPU, with a fixed number of threads.

    Args:
        path: A file of :func:`secateur.export.export_onnx` or
            :func:`secateur.quantization.qdq.quantize_onnx`.
        threads: Threads inside one operator; operators run one after another.

    Raises:
        SecateurError: The file is missing, corrupt, or holds what ONNX Runtime cannot run.
    """

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        self.version: str = onnxruntime.__version__
        try:
            self._session = onnxruntime.InferenceSession(
                path, session_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise SecateurError(
                "cannot load an ONNX file", where=path, found=error, remedy="export it again"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""
        return self._session.run(None, {self._input: images})[0]


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options under which int8 is exact and two sessions do not disturb each other.

    On x86 without VNNI, ONNX Runtime by default multiplies uint8 by int8 with ``vpmaddubsw``, which
    saturates the sum of two products at 16 bits and silently changes results. The option
    ``session.x64quantprecision`` makes it store int8 weights as uint8 at load, whose kernels are
    exact; with VNNI it changes nothing. It costs up to a third of the time of a small network.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    # Variants are timed in turns: the threads of one must not spin into the time of the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
