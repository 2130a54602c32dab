"""Where the time of one file goes, as data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from secateur import environment
from secateur.artifact.packing import unpack
from secateur.artifact.screening import screen
from secateur.benchmarking.timing import latencies
from secateur.errors import SecateurError
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
        size_bytes: On disk.
        precision: ``int8`` where the file holds quantizers, else ``float``.
        runtime: Name and version.
        processor: That this ran on.
        threads: Inside one operator.
        median_ms: Of a whole run, without the profiler.
        p10_ms: Its 10th percentile.
        p90_ms: Its 90th percentile.
        nodes: Of the graph that runs, longest first.
        islands: What is still in float in a quantized file, longest first.
        edges: Conversions at the file's inputs and outputs, which must be.
        conversions: Conversions inside the graph, which islands bring.
        widths: Convolutions that miss their kernel's block, longest first.
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
        """Count, milliseconds and share of each operator, longest first; of those ``among``."""
        total: dict[str, dict[str, float]] = {}
        for node in self.nodes:
            if among is None or node.operator in among:
                sums = total.setdefault(node.operator, {"count": 0, "ms": 0.0, "share": 0.0})
                sums["count"] += 1
                sums["ms"] += node.ms
                sums["share"] += node.share
        return dict(sorted(total.items(), key=lambda item: -item[1]["ms"]))

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {"operators": self.operators(), "moving": self.operators(MOVERS)}


def explain(
    path: str | Path, threads: int = 2, repeats: int = 50, size: int | None = None
) -> Explanation:
    """Run a file under ONNX Runtime and measure where its time goes.

    Args:
        path: An ONNX file with one float32 image as input, its weights inside or beside it; or a
            packed file, ``.sec``.
        threads: Threads inside one operator.
        repeats: Runs to take the median of, with the profiler and as many without.
        size: Height and width of the image, where the file leaves them open.

    Raises:
        SecateurError: The file is not ONNX, ONNX Runtime cannot run it, or its input's shape is
            open and ``size`` is not given.

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
            unpacked.write_bytes(unpack(path.read_bytes()).onnx)
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
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise SecateurError("ONNX Runtime cannot run the file", where=path, found=error) from error
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
    """Return one random image of the shape that the file reads."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    kind = inputs[0].type.tensor_type if len(inputs) == 1 else onnx.TypeProto.Tensor()
    shape = [dim.dim_value for dim in kind.shape.dim]
    if kind.elem_type != onnx.TensorProto.FLOAT or len(shape) != 4:
        raise SecateurError(
            "not an image classifier",
            where=path,
            expected="one float32 input of shape (N, C, H, W)",
            found=", ".join(f"{value.name} of {_shape(value)}" for value in inputs) or "no input",
        )
    shape[0] = shape[0] or 1
    shape[2:] = [side or size or 0 for side in shape[2:]]
    if 0 in shape:
        raise SecateurError(
            "the file leaves its input's shape open",
            where=path,
            found=_shape(inputs[0]),
            remedy="give the image's side with --size" if shape[1] else "export it with a shape",
        )
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _shape(value: onnx.ValueInfoProto) -> str:
    sides = [str(d.dim_param or d.dim_value or "?") for d in value.type.tensor_type.shape.dim]
    return f"({', '.join(sides)})"
