"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from secateur import environment
from secateur.errors import SecateurError
from secateur.runtimes.protocol import Array

# Telemetry starts with the import, which secateur/__init__.py prevents. This call is for programs
# that import ONNX Runtime before Secateur.
onnxruntime.disable_telemetry_events()

SATURATION_FREE = "saturation_free"
"""Metadata key: ``true`` if no two products can overflow 16 bits."""


class OnnxRuntime:
    """An ONNX file on the CPU, with a fixed number of threads.

    Args:
        source: A file of :func:`secateur.onnx_ir.export.export_onnx` or
            :func:`secateur.quantization.qdq.quantize_onnx`, or its bytes.
        threads: Threads inside one operator; operators run sequentially.

    Raises:
        SecateurError: The file is missing or corrupt, or ONNX Runtime cannot run it.
    """

    name = "onnxruntime"

    def __init__(self, source: Path | bytes, threads: int) -> None:
        self.version: str = onnxruntime.__version__
        try:
            # Parsing the file is much faster than creating a second session.
            if isinstance(source, bytes):
                model = onnx.load_model_from_string(source)
            else:
                model = onnx.load(source)
            options = session_options(threads, is_saturation_free(model))
            self._session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the exceptions of the two libraries have no public base class
            raise SecateurError(
                "cannot load an ONNX file",
                where=None if isinstance(source, bytes) else source,
                found=error,
                remedy="export it again",
            ) from error
        image = self._session.get_inputs()[0]
        self._input, batch = image.name, image.shape[0] if image.shape else None
        self._batch = batch if isinstance(batch, int) else 0

    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R).

        A file for one batch size is run several times, with repeated images at the end.

        Raises:
            SecateurError: ONNX Runtime cannot run the network on these images.
        """
        size = self._batch
        if size in (0, len(images)):
            return self._run(images)
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, axis=0)])
        starts = range(0, len(padded), size)
        parts = [self._run(padded[start : start + size]) for start in starts]
        return np.concatenate(parts)[: len(images)]

    def _run(self, images: Array) -> Array:
        try:
            return self._session.run(None, {self._input: images})[0]
        except Exception as error:  # its exceptions have no public base class
            raise SecateurError("ONNX Runtime cannot run the network", found=error) from error


def is_saturation_free(model: onnx.ModelProto) -> bool:
    """Whether the metadata of ``model`` states that its weights cannot saturate 16-bit sums.

    Any two weights of a row with the same sign then sum to at most 128 in magnitude: 255 * 128 <
    2^15.
    """
    return any(
        entry.key == SATURATION_FREE and entry.value == "true" for entry in model.metadata_props
    )


def session_options(threads: int, saturation_free: bool = False) -> onnxruntime.SessionOptions:
    """Session options for exact int8 and for sessions that do not disturb each other.

    On x86 without VNNI, ONNX Runtime by default multiplies uint8 by int8 with ``vpmaddubsw``, which
    saturates the sum of two products at 16 bits and silently changes results. The option
    ``session.x64quantprecision`` makes it store int8 weights as uint8 at load, whose kernels are
    exact. It costs up to a third of the time of a small network, and is therefore not used for
    files whose weights cannot saturate. It is not used with VNNI either, whose sums have 32 bits;
    there the option would be several times slower, because it disables VNNI's kernels.

    Args:
        threads: Threads inside one operator.
        saturation_free: Whether the weights cannot saturate; see :func:`is_saturation_free`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    if not saturation_free and environment.may_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Variants are timed in turns: threads of one must not spin during the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
