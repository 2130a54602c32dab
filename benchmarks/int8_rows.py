"""Quantization by other tools, of the same float file and calibration images.

A row turns a float ONNX file and normalized images into files on disk, and opens them as a user of
that tool would. Tools are imported where they are used, so that a missing tool fails its own row
only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secateur import recipe
from secateur.onnx_ir.model import read_model, write_model
from secateur.onnx_ir.shuffles import straighten
from secateur.quantization.post_training import quantize_graph
from secateur.quantization.qdq import write_qdq
from secateur.runtimes import OnnxRuntime, Runtime

Array = npt.NDArray[np.float32]
Make = Callable[[Path, Array, Path], list[Path]]
"""From a float file, images (N, C, R, R) and an empty folder to files; the first is opened."""


@dataclass(frozen=True)
class Row:
    """One way to run a network.

    Attributes:
        title: Title in tables.
        engine: The runtime it runs on, ``onnxruntime`` or ``openvino``.
        make: Writes its files.
        open: Opens a file with a number of threads.
    """

    title: str
    engine: str
    make: Make
    open: Callable[[Path, int], Runtime]


class PlainOnnxRuntime:
    """ONNX Runtime with its default session options, besides the number of threads."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        self.version: str = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads must not spin into another row's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""
        return self._session.run(None, {self._input: images})[0]


class OpenVino:
    """OpenVINO on the CPU, tuned for the latency of one request.

    The network is compiled for each batch size: an open batch size costs OpenVINO up to half of its
    time, and users who need low latency fix the shape.
    """

    name = "openvino"

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        self.version: str = openvino.__version__.partition("-")[0]
        self._core = openvino.Core()
        self._path = path
        self._config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._requests: dict[tuple[int, ...], Any] = {}

    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""
        if images.shape not in self._requests:
            model = self._core.read_model(self._path)
            model.reshape(images.shape)
            compiled = self._core.compile_model(model, "CPU", self._config)
            self._requests[images.shape] = compiled.create_infer_request()
        request = self._requests[images.shape]
        request.infer([images], share_inputs=True)
        return request.get_output_tensor(0).data.copy()


def as_it_is(float_path: Path, images: Array, folder: Path) -> list[Path]:
    """The float file itself."""
    return [float_path]


def onnxruntime_static(**options: Any) -> Make:
    """ONNX Runtime's own static quantization, after the preprocessing its manual asks for."""

    def make(float_path: Path, images: Array, folder: Path) -> list[Path]:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self._feeds = ({"image": images[i : i + 1]} for i in range(len(images)))

            def get_next(self) -> dict[str, Array] | None:
                return next(self._feeds, None)

        prepared, quantized = folder / "prepared.onnx", folder / "quantized.onnx"
        quant_pre_process(float_path, prepared)
        quantize_static(prepared, quantized, Reader(), **options)
        return [quantized]

    return make


def nncf_quantize(float_path: Path, images: Array, folder: Path) -> list[Path]:
    """NNCF's post-training quantization of an OpenVINO model, with its defaults, on all images."""
    import nncf
    import openvino

    model = openvino.Core().read_model(float_path)
    dataset = nncf.Dataset([images[i : i + 1] for i in range(len(images))])
    quantized = nncf.quantize(model, dataset, subset_size=len(images))
    path = folder / "quantized.xml"
    openvino.save_model(quantized, path)
    return [path, path.with_suffix(".bin")]


FLOAT = {
    "fp32-onnxruntime": Row("fp32, ONNX Runtime", "onnxruntime", as_it_is, OnnxRuntime),
    "fp32-openvino": Row("fp32, OpenVINO", "openvino", as_it_is, OpenVino),
}
"""The fp32 baselines on each runtime."""

PEERS = {
    "quantize_static": Row(
        "`quantize_static`, defaults", "onnxruntime", onnxruntime_static(), PlainOnnxRuntime
    ),
    # Their manual: on AVX2 without VNNI, seven bits keep the sums of products from saturating.
    "quantize_static-tuned": Row(
        "`quantize_static`, `per_channel`, `reduce_range`",
        "onnxruntime",
        onnxruntime_static(per_channel=True, reduce_range=True),
        PlainOnnxRuntime,
    ),
    "nncf": Row("NNCF, defaults", "openvino", nncf_quantize, OpenVino),
}
"""Int8 of other tools."""


# ---- Secateur's own rows


def make_secateur(float_path: Path, images: Array, out: Path) -> None:
    """Export and quantize as ``secateur run`` does by default."""
    straight = out.with_name("straight.onnx")
    write_model(straighten(read_model(float_path)), straight)
    done = quantize_graph(read_model(straight), torch.from_numpy(images), recipe.Quantize())
    write_qdq(done.model, done.scheme, out)


def straightened(float_path: Path, images: Array, folder: Path) -> list[Path]:
    """The float file as ``secateur export`` writes it."""
    path = folder / "straight.onnx"
    write_model(straighten(read_model(float_path)), path)
    return [path]


def own_file(made_before: Path | None, float_path: Path, images: Array, folder: Path) -> list[Path]:
    """Secateur's file: ``made_before``, or a new one."""
    if made_before is not None:
        return [made_before]
    made = folder / "secateur.onnx"
    make_secateur(float_path, images, made)
    return [made]


def all_rows(made_before: Path | None = None) -> dict[str, Row]:
    """Every row in the tables' order; ``made_before`` is Secateur's int8 file, if there is one."""
    make = partial(own_file, made_before)
    own_rows = {
        "ours-onnxruntime": Row("**Secateur**, ONNX Runtime", "onnxruntime", make, OnnxRuntime),
        "ours-openvino": Row("**Secateur**, OpenVINO", "openvino", make, OpenVino),
    }
    shipped = Row("fp32, shuffles folded, ONNX Runtime", "onnxruntime", straightened, OnnxRuntime)
    return FLOAT | {"fp32-straight": shipped} | own_rows | PEERS
