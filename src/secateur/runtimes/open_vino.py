"""OpenVINO on the CPU; an optional dependency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.runtimes.protocol import Array


class OpenVino:
    """An ONNX file in OpenVINO, on the CPU, with a fixed number of threads.

    The file is compiled for each input shape at its first run: a fixed batch size saves a tenth to
    a third of the time of a small network. Float operators compute in float32, even if the
    processor supports shorter types.

    Args:
        path: A file of :func:`secateur.onnx_ir.export.export_onnx` or
            :func:`secateur.quantization.qdq.quantize_onnx`.
        threads: Threads for one run.

    Raises:
        SecateurError: OpenVINO is not installed, the file is missing or corrupt, or OpenVINO cannot
            run it.
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
            # Core.read_model would try all formats on a corrupt file and print their errors.
            reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
            self._model = reader.convert(reader.load(str(path)))
        except Exception as error:  # missing and corrupt files raise different types
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
        import openvino  # optional and slow to import
    except ImportError as error:
        raise SecateurError(
            "OpenVINO is not installed", remedy="pip install 'secateur[openvino]'"
        ) from error
    return openvino


def _refused(path: Path, error: Exception) -> SecateurError:
    # OpenVINO prints its source lines first and the error last.
    last = [line for line in str(error).splitlines() if line.strip()][-1:]
    return SecateurError(
        "OpenVINO cannot run an ONNX file", where=path, found=(last or [type(error).__name__])[0]
    )
