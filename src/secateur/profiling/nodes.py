"""Nodes of the optimized graph, and their latency."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from secateur.onnx_ir.model import read_model
from secateur.runtimes import Array, session_options
from secateur.runtimes.onnx_runtime import is_saturation_free

WARMUP = 5
"""Number of untimed runs."""


@dataclass(frozen=True)
class Node:
    """A node of the optimized graph.

    Attributes:
        name: Name in the optimized graph; it starts with the name in the file.
        operator: Name of the operator.
        element: Type, ``int8`` or ``float``; for conversions, input and output type with ``>``.
        reads: Shape of its first input image or matrix. Integer layers have channels last.
        gives: Shape of its first output.
        ms: Median milliseconds.
        share: Fraction of the time of all nodes, in [0, 1].
    """

    name: str
    operator: str
    element: str
    reads: tuple[int, ...]
    gives: tuple[int, ...]
    ms: float
    share: float


def profile(
    path: Path, options: onnxruntime.SessionOptions, image: Array, repeats: int
) -> list[dict[str, Any]]:
    """Return the profiler's events of warm-up and ``repeats`` runs."""
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: image}
        for _ in range(WARMUP + repeats):
            session.run(None, feed)
        return json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))


def optimized_graph(path: Path) -> onnx.ModelProto:
    """Return the graph after ONNX Runtime's optimizations on this processor.

    Raises:
        SecateurError: The file is not ONNX.
    """
    model = read_model(path)
    options = session_options(threads=1, saturation_free=is_saturation_free(model))
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        # All tensors are included: the optimized file would look for external data in its own
        # folder.
        content = model.SerializeToString()
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return onnx.load(f"{folder}/optimized.onnx")


def gather(events: list[dict[str, Any]]) -> tuple[Node, ...]:
    """Gather the events of each node, slowest first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs.setdefault(event["args"]["node_index"], []).append(event)
    medians = {key: float(np.median([e["dur"] for e in of[WARMUP:]])) for key, of in runs.items()}
    total = sum(medians.values())
    nodes = [_node(runs[key][0], medians[key] / 1e3, medians[key] / total) for key in runs]
    return tuple(sorted(nodes, key=lambda node: -node.ms))


def _node(event: dict[str, Any], ms: float, share: float) -> Node:
    read = [next(iter(each.items())) for each in event["args"]["input_type_shape"] if each]
    results = [next(iter(each.items())) for each in event["args"]["output_type_shape"] if each]
    # Scales and zero points may precede the activation, but have fewer dimensions.
    kind, reads = max(read, key=lambda each: len(each[1]), default=("float", []))
    result_kind, gives = results[0] if results else (kind, [])
    kinds = [_element(kind), _element(result_kind)]
    return Node(
        name=event["name"].removesuffix("_kernel_time"),
        operator=event["args"]["op_name"],
        element=">".join(dict.fromkeys(kinds)),
        reads=tuple(reads),
        gives=tuple(gives),
        ms=ms,
        share=share,
    )


def _element(kind: str) -> str:
    return "int8" if kind in ("uint8", "int8") else kind
