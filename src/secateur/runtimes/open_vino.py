"""OpenVINO on the CPU; an optional dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.runtimes.protocol import Array


class OpenVino:
    """An ONNX file in OpenVINO, on the CPU, with a fixed number of threads.

    The file is compiled again for each shape of images, at its first run: knowing the batch saves
    OpenVINO a tenth to a third of the time on a small network. What is not int8 computes in
    float32, whatever shorter type the processor has.

    Args:
        path: A file of :func:`secateur.onnx_ir.export.export_onnx` or
            :func:`secateur.quantization.qdq.quantize_onnx`.
        threads: Threads for one run.

    Raises:
        SecateurError: OpenVINO is not installed, or the file is missing, corrupt, or holds what
            OpenVINO cannot run.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int) -> None:
        openvino = _library()
        self.version: str = openvino.__version__.split("-")[0]
        self._core, self._path = openvino.Core(), path
        self._hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._requests: dict[tuple[int, ...], Any] = {}
        try:
            # Core.read_model would try every other format on a corrupt file, and print their woes.
            reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
            self._model = reader.convert(reader.load(str(path)))
        except Exception as error:  # a missing file and a corrupt one are different types
            raise _refused(path, error) from error

    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""
        if images.shape not in self._requests:
            self._requests[images.shape] = self._compile(images.shape)
        request = self._requests[images.shape]
        result = request.infer([np.ascontiguousarray(images)], share_inputs=True)
        return result[0]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        try:
            self._model.reshape(list(shape))
            return self._core.compile_model(self._model, "CPU", self._hints).create_infer_request()
        except RuntimeError as error:
            raise _refused(self._path, error) from error


def _library() -> Any:
    try:
        import openvino  # optional, and slow to import
    except ImportError as error:
        raise SecateurError(
            "OpenVINO is not installed", remedy="pip install 'secateur[openvino]'"
        ) from error
    return openvino


def _refused(path: Path, error: Exception) -> SecateurError:
    # OpenVINO tells the lines of its own source first; what happened stands last.
    last = [line for line in str(error).splitlines() if line.strip()][-1:]
    return SecateurError(
        "OpenVINO cannot run an ONNX file", where=path, found=(last or [type(error).__name__])[0]
    )
