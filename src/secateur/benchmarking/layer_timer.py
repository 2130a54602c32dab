"""Latency of single layers on this machine, measured once and cached.

The latency of a layer is not proportional to its multiply-accumulates: kernels work on blocks of 8
or 16 channels, and a width between two multiples can be slower than the next multiple. Widths are
therefore measured, not modeled (NetAdapt, Yang et al. 2018, section 3.3; HALP, Shen et al. 2022,
section 3.2).

Several copies of a layer run in parallel branches of one graph, with the runtime, options and
quantizers of the exported file. The output of each copy is reduced to one pixel per channel.
Without this, the runtime's conversion of its internal layout at the graph's output would be timed
too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from secateur import environment
from secateur.disk import write_json
from secateur.errors import StoreError
from secateur.onnx_ir.model import IR_VERSION, OPSET
from secateur.recipe import content_id
from secateur.runtimes import SATURATION_FREE, Array, Runtime, session_options
from secateur.runtimes.onnx_runtime import is_saturation_free

Precision = Literal["fp32", "int8"]

COPIES = 6
"""Largest number of copies of a layer in one graph."""
ENOUGH_MACS = 12_000_000
"""Multiply-accumulates of a graph at which the overhead of a call is small."""
REPEATS, MAX_ROUNDS = 12, 5
"""Timings of a graph in a round, and the largest number of rounds on a busy machine."""
AGREES = 1.03
"""Largest ratio of the second smallest time to the smallest at which the smallest is accepted."""


@dataclass(frozen=True)
class Layer:
    """The geometry of one call of a convolution or linear layer, on one image.

    Attributes:
        kind: Convolution over any number of dimensions, or linear.
        inputs: Input channels.
        outputs: Output channels.
        groups: Groups of the convolution, else 1.
        size: Input size along each spatial dimension; for ``linear``, the number of rows.
        kernel: Along each dimension; empty for ``linear``, as are the following attributes.
        stride: Along each dimension.
        dilation: Along each dimension.
        pads: At the start of each dimension, then at the end of each.
    """

    kind: Literal["conv", "linear"]
    inputs: int
    outputs: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    @property
    def result(self) -> tuple[int, ...]:
        """Output size along each spatial dimension; for ``linear``, the number of rows."""
        if self.kind == "linear":
            return self.size
        axes = range(len(self.size))
        padded = [n + self.pads[i] + self.pads[i + len(axes)] for i, n in enumerate(self.size)]
        reach = [self.dilation[i] * (self.kernel[i] - 1) + 1 for i in axes]
        return tuple((padded[i] - reach[i]) // self.stride[i] + 1 for i in axes)

    @property
    def elements(self) -> int:
        """Number of elements of the output."""
        return self.outputs * math.prod(self.result)

    @property
    def weights(self) -> int:
        """Number of elements of the weight."""
        return self.outputs * self.inputs // self.groups * math.prod(self.kernel)

    @property
    def key(self) -> str:
        """The geometry in one line, for example ``conv 58>58/58 28x28 k3x3 s1x1 d1x1 p1x1x1x1``."""
        parts = [("", self.size), ("k", self.kernel), ("s", self.stride), ("d", self.dilation),
                 ("p", self.pads)]  # fmt: skip
        shape = " ".join(head + "x".join(map(str, part)) for head, part in parts if part)
        return f"{self.kind} {self.inputs}>{self.outputs}/{self.groups} {shape}"


class LayerTimer:
    """Measures the relative latency of layers, cached in a file per machine.

    The speed of a shared machine drifts. A layer is therefore timed in turns with a fixed reference
    convolution; the ratio of their times is returned and cached.

    Args:
        precision: ``int8`` as in :mod:`secateur.quantization.qdq`, or ``fp32``.
        threads: Inside one operator.
        folder: Folder of the cache file; by default the user's cache. An unreadable file is
            replaced; failure to write the file is ignored.
        ratio: Maps a layer to its latency relative to the reference layer; by default it is
            measured.

    Attributes:
        fresh: Number of layers that were measured, not read from the cache.
    """

    def __init__(
        self,
        precision: Precision,
        threads: int,
        folder: Path | None = None,
        ratio: Callable[[Layer], float] | None = None,
    ) -> None:
        about = {
            "processor": environment.processor(),
            "threads": threads,
            "onnxruntime": onnxruntime.__version__,
            "precision": precision,
            "saturation_free": True,  # missing in older cache files
        }
        self.path = (folder or cache_folder()) / f"latency-{content_id(about)}.json"
        self.fresh = 0
        self._about, self._known = about, _read(self.path, about)
        self._cached_runner: _LayerRunner | None = None
        self._precision, self._threads = precision, threads
        self._ratio = ratio

    def __call__(self, layer: Layer) -> float:
        """Latency of ``layer`` relative to the reference layer, without call overhead."""
        if layer.key not in self._known:
            measure = self._ratio or self._runner.ratio
            self._known[layer.key] = measure(layer)
            self.fresh += 1
        return self._known[layer.key]

    @property
    def reference(self) -> Runtime:
        """The reference layer as a runtime, to be timed in turns with a network."""
        return self._runner

    @property
    def _runner(self) -> _LayerRunner:
        if self._cached_runner is None:
            self._cached_runner = _LayerRunner(self._precision, self._threads)
        return self._cached_runner

    def save(self) -> None:
        """Merge the measurements into the cache file, which other processes may have changed."""
        if self.fresh:
            known = _read(self.path, self._about) | self._known
            with contextlib.suppress(OSError, StoreError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, {"about": self._about, "ratios": dict(sorted(known.items()))})


def cache_folder() -> Path:
    """Secateur's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "secateur"


def _read(path: Path, about: dict[str, Any]) -> dict[str, float]:
    """Read cached ratios; empty if the file is missing, damaged or from another machine."""
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
        ratios = {str(key): float(value) for key, value in cached["ratios"].items()}
        valid = cached["about"] == about and all(0 <= r < math.inf for r in ratios.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return ratios if valid else {}


class _LayerRunner:
    """Times layers in turns with the reference layer; as a runtime, it runs the reference layer."""

    name, version = "onnxruntime", onnxruntime.__version__

    REFERENCE = Layer("conv", 64, 64, 1, (28, 28), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))

    def __init__(self, precision: Precision, threads: int) -> None:
        self.precision, self.threads = precision, threads
        self._reference = self._session(layer_graph(self.REFERENCE, precision, 1))
        empty = self._session(_empty_graph())
        self._overhead = _fastest(empty)[0]

    def run(self, images: Array) -> Array:
        """Run the reference layer on its own input; ``images`` are ignored."""
        self._reference()
        return images

    def ratio(self, layer: Layer) -> float:
        """Latency of ``layer`` relative to the reference layer, timed in turns."""
        copies = copies_of(layer)
        session = self._session(layer_graph(layer, self.precision, copies))
        of_copies, of_reference = _fastest(session, self._reference)
        return max(of_copies - self._overhead, 0.0) / copies / of_reference

    def _session(self, model: onnx.ModelProto) -> Callable[[], object]:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            session_options(self.threads, is_saturation_free(model)),
            providers=["CPUExecutionProvider"],
        )
        value = model.graph.input[0].type.tensor_type
        kind = helper.tensor_dtype_to_np_dtype(value.elem_type)
        shape = [dimension.dim_value for dimension in value.shape.dim]
        feed = {"x": np.random.default_rng(0).integers(1, 100, shape).astype(kind)}
        return lambda: session.run(None, feed)


def _fastest(*runners: Callable[[], object]) -> list[float]:
    """Smallest milliseconds of each, timed in turns until the two smallest of each nearly agree.

    Disturbances only make a run slower.
    """
    for runner in runners:
        runner()
    samples = np.empty((0, len(runners)))
    for _ in range(MAX_ROUNDS):
        samples = np.vstack([samples, [[_timed(r) for r in runners] for _ in range(REPEATS)]])
        least = np.sort(samples, axis=0)
        if (least[1] <= AGREES * least[0]).all():
            break
    return least[0].tolist()


def _timed(runner: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    runner()
    return (time.perf_counter_ns() - start) / 1e6


def copies_of(layer: Layer) -> int:
    """Number of copies at which a graph takes much longer than its call; 1 if weights are large."""
    if layer.weights > 1_000_000:
        return 1
    macs = layer.weights * math.prod(layer.result)
    return max(2, min(COPIES, ENOUGH_MACS // max(1, macs)))


def layer_graph(layer: Layer, precision: Precision, copies: int) -> onnx.ModelProto:
    """Build a graph that runs ``copies`` of ``layer`` side by side on one input, ``x``.

    An int8 graph is QDQ as in :mod:`secateur.quantization.qdq`: uint8 activations with one scale
    for each tensor, int8 weights with one scale for each output channel, int32 biases.
    """
    writer = _Writer(precision == "int8")
    source = writer.dequantized("x")
    results = []
    for number in range(copies):
        tensor = writer.weighted(layer, source, str(number))
        if layer.kind == "conv":
            tensor = writer.thinned(layer, tensor)
        results.append(writer.quantized_output(tensor))
    kind = onnx.TensorProto.UINT8 if precision == "int8" else onnx.TensorProto.FLOAT
    convolves = layer.kind == "conv"
    shape = [1, layer.inputs, *layer.size] if convolves else [*layer.size, layer.inputs]
    small = [1, layer.outputs, *[1] * len(layer.size)]
    result = small if convolves else [*layer.size, layer.outputs]
    model = _model(
        writer.nodes,
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, result) for name in results],
        writer.constants,
    )
    onnx.helper.set_model_props(model, {SATURATION_FREE: "true"})
    return model


def _empty_graph() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    return _model([helper.make_node("Neg", ["x"], ["y"])], [x], [y], [])


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "layer", inputs, outputs, constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


SCALE = 0.05
"""Scale of all activations; latency does not depend on it."""


class _Writer:
    """Adds nodes, surrounded by quantizers if ``quantized``."""

    def __init__(self, quantized: bool) -> None:
        self.quantized = quantized
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        if quantized:
            self.grid = [
                self._constant("scale", np.float32(SCALE)),
                self._constant("zero", np.uint8(0)),
            ]

    def dequantized(self, name: str) -> str:
        """Add a dequantizer, if the graph is quantized."""
        return self._add("DequantizeLinear", [name, *self.grid]) if self.quantized else name

    def quantized_output(self, tensor: str) -> str:
        """Add a quantizer, if the graph is quantized."""
        return self._add("QuantizeLinear", [tensor, *self.grid]) if self.quantized else tensor

    def weighted(self, layer: Layer, source: str, tag: str) -> str:
        """Add one copy of the layer."""
        shape = (layer.outputs, layer.inputs // layer.groups, *layer.kernel)
        # Any values that neither saturate nor are denormal, which would be slower.
        values = (np.arange(math.prod(shape)) % 129 - 64).astype(np.int8).reshape(shape)
        if self.quantized:
            biases = np.zeros(len(values), np.int32)
            scales = 0.01, 0.01 * SCALE
            inputs = [source, self._integers(f"w{tag}", values, scales[0]),
                      self._integers(f"b{tag}", biases, scales[1])]  # fmt: skip
        else:
            weight = self._constant(f"w{tag}", values.astype(np.float32) / 100)
            inputs = [source, weight, self._constant(f"b{tag}", np.ones(len(values), np.float32))]
        if layer.kind == "linear":
            return self._add("Gemm", inputs, transB=1)
        return self._add(
            "Conv",
            inputs,
            group=layer.groups,
            kernel_shape=layer.kernel,
            strides=layer.stride,
            dilations=layer.dilation,
            pads=layer.pads,
        )

    def thinned(self, layer: Layer, tensor: str) -> str:
        """Reduce to one pixel per channel by a pool of kernel 1 and a stride of the image size."""
        if self.quantized:
            tensor = self.dequantized(self.quantized_output(tensor))
        ones = [1] * len(layer.size)
        return self._add("MaxPool", [tensor], kernel_shape=ones, strides=layer.result)

    def _integers(self, name: str, values: npt.NDArray, scale: float) -> str:
        rows = len(values)
        inputs = [
            self._constant(name, values),
            self._constant(f"{name}/scale", np.full(rows, scale, np.float32)),
            self._constant(f"{name}/zero", np.zeros(rows, values.dtype)),
        ]
        return self._add("DequantizeLinear", inputs, axis=0)

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name
