"""Explains the latency of a file: time of each node, float islands, conversions, widths."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from secateur import environment
from secateur.artifact.packing import LARGER, LIMIT, unpack
from secateur.artifact.screening import screen
from secateur.benchmarking.timing import latencies
from secateur.disk import read_bytes
from secateur.errors import NetworkError
from secateur.onnx_ir.model import read_model
from secateur.profiling.block_widths import Width, find_widths
from secateur.profiling.islands import Island, find_conversions, find_islands
from secateur.profiling.nodes import WARMUP, Node, gather, optimized_graph, profile
from secateur.profiling.operators import MOVERS, is_quantized
from secateur.runtimes import Array, OnnxRuntime, session_options
from secateur.runtimes.onnx_runtime import is_saturation_free


@dataclass(frozen=True)
class Explanation:
    """The result of :func:`explain`; plain data.

    Attributes:
        file: Path of the file.
        size_bytes: Size of the file.
        precision: ``int8`` if the file has quantizers, else ``float``.
        runtime: Name and version.
        processor: Processor of the measurement.
        threads: Threads inside one operator.
        median_ms: Median latency of a run without the profiler.
        p10_ms: 10th percentile of that latency.
        p90_ms: 90th percentile of that latency.
        nodes: Nodes of the optimized graph, slowest first.
        islands: Nodes that compute in float in a quantized file, slowest first.
        edges: Necessary conversions at the file's inputs and outputs.
        conversions: Conversions inside the graph, caused by islands.
        widths: Convolutions that do not fill their kernel's blocks, slowest first.
    """

    file: str
    size_bytes: int
    precision: str
    runtime: str
    processor: str
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    nodes: tuple[Node, ...]
    islands: tuple[Island, ...]
    edges: tuple[str, ...]
    conversions: tuple[str, ...]
    widths: tuple[Width, ...]

    def operators(self, among: Iterable[str] | None = None) -> dict[str, dict[str, float]]:
        """Count, milliseconds and share of each operator, or of those ``among``, slowest first."""
        total: dict[str, dict[str, float]] = {}
        for node in self.nodes:
            if among is None or node.operator in among:
                sums = total.setdefault(node.operator, {"count": 0, "ms": 0.0, "share": 0.0})
                sums["count"] += 1
                sums["ms"] += node.ms
                sums["share"] += node.share
        return dict(sorted(total.items(), key=lambda item: -item[1]["ms"]))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return asdict(self) | {"operators": self.operators(), "moving": self.operators(MOVERS)}


def explain(
    path: str | Path, threads: int = 2, repeats: int = 50, size: int | None = None
) -> Explanation:
    """Measure the latency of each node of a file in ONNX Runtime.

    Args:
        path: An ONNX file with one float32 image as input, with or without external data; or a
            packed file, ``.sec``.
        threads: Threads inside one operator.
        repeats: Number of runs with the profiler, and of runs without it.
        size: Height and width of the image, if the file does not fix them.

    Raises:
        NetworkError: The file is not ONNX, ONNX Runtime cannot run it, or ``size`` is needed.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> path = secateur.export(network, "net.onnx", (1, 8, 8))
        >>> explanation = secateur.explain(path, threads=1, repeats=3)
        >>> explanation.precision, "Gemm" in explanation.operators()
        ('float', True)
    """
    path = Path(path)
    if path.suffix == ".sec":
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder) / f"{path.stem}.onnx"
            unpacked.write_bytes(unpack(read_bytes(path, LIMIT, LARGER)).onnx)
            explanation = _explain(unpacked, threads, repeats, size)
        return replace(explanation, file=str(path), size_bytes=path.stat().st_size)
    return _explain(path, threads, repeats, size)


def _explain(path: Path, threads: int, repeats: int, size: int | None) -> Explanation:
    screen(path, run=True, size=size)
    model = read_model(path)
    image = _image(model, size, path)
    runtime = OnnxRuntime(path, threads)
    try:
        events = profile(path, session_options(threads, is_saturation_free(model)), image, repeats)
        optimized = optimized_graph(path)
    except Exception as error:  # onnxruntime's exceptions have no public base class
        raise NetworkError("ONNX Runtime cannot run the file", where=path, found=error) from error
    samples = latencies({"file": runtime}, image, WARMUP, repeats)["file"]
    p10, median, p90 = (float(value) for value in np.percentile(samples, [10, 50, 90]))
    nodes = gather(events)
    edges, conversions = find_conversions(optimized)
    return Explanation(
        file=str(path),
        size_bytes=path.stat().st_size,
        precision="int8" if is_quantized(model) else "float",
        runtime=f"{runtime.name} {runtime.version}",
        processor=environment.processor(),
        threads=threads,
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        nodes=nodes,
        islands=tuple(find_islands(optimized, nodes)),
        edges=edges,
        conversions=conversions,
        widths=tuple(find_widths(model, optimized, nodes)),
    )


def _image(model: onnx.ModelProto, size: int | None, path: Path) -> Array:
    """Return one random image of the input shape."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    kind = inputs[0].type.tensor_type if len(inputs) == 1 else onnx.TypeProto.Tensor()
    shape = [dim.dim_value for dim in kind.shape.dim]
    if kind.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4:
        raise NetworkError(
            "not an image classifier",
            where=path,
            expected="one float32 input of shape (N, C, H, W)",
            found=", ".join(f"{value.name} of {_shape(value)}" for value in inputs) or "no input",
        )
    shape[0] = shape[0] or 1
    shape[2:] = [side or size or 0 for side in shape[2:]]
    if 0 in shape:
        raise NetworkError(
            "the file leaves its input's shape open",
            where=path,
            found=_shape(inputs[0]),
            remedy="give the image's side with --size" if shape[1] else "export it with a shape",
        )
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _shape(value: onnx.ValueInfoProto) -> str:
    sides = [str(d.dim_param or d.dim_value or "?") for d in value.type.tensor_type.shape.dim]
    return f"({', '.join(sides)})"
