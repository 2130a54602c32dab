"""Nodes that compute in float in a quantized file, with reasons and remedies."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from secateur.onnx_ir.model import Graph, attribute
from secateur.profiling.nodes import Node
from secateur.profiling.operators import CONVERTERS, INTEGER, MOVERS, is_quantized

UNCOUNTED = {*CONVERTERS, *MOVERS} - {"Concat"}
"""Operators that may be in float without being reported."""
WEIGHTED = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")
ABLE = (
    *WEIGHTED, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu",
    "Resize",
)  # fmt: skip
"""Operators that Secateur's files compute in integers if adjacent nodes do."""


@dataclass(frozen=True)
class Island:
    """A node that computes in float in a quantized file, with reason and remedy.

    ``ms`` is None if the profiler's name of the node is not in the graph.
    """

    name: str
    operator: str
    ms: float | None
    why: str
    remedy: str


def float_islands(model: onnx.ModelProto) -> list[str]:
    """Return the names of nodes that compute in float in a quantized graph.

    Conversions and data movement are not included.

    Args:
        model: Result of :func:`optimized_graph`; in the file itself, all nodes are float.
    """
    return [_name(node) for node in _in_float(model)]


def _in_float(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    if not is_quantized(model):
        return []
    floats = _float_tensors(model)
    return [
        node
        for node in model.graph.node
        if node.op_type not in UNCOUNTED
        and not INTEGER.fullmatch(node.op_type)
        and any(name in floats for name in node.input)
    ]


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of float activations, without constants."""
    floats = {
        value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    } - {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:  # in topological order
        if _gives_float(node, floats):
            floats.update(node.output)
    return floats


def _gives_float(node: onnx.NodeProto, floats: set[str]) -> bool:
    if node.op_type == "QGemm":  # to integers only if it has a zero point
        return len(node.input) < 9 or not node.input[8]
    if node.op_type in ("DequantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"):
        return True
    if node.op_type in ("QuantizeLinear", "Shape") or INTEGER.fullmatch(node.op_type):
        return False
    return any(name in floats for name in node.input)


def find_islands(optimized: onnx.ModelProto, nodes: tuple[Node, ...]) -> list[Island]:
    """List the float nodes with reason and remedy, slowest first."""
    graph, times = Graph(optimized), {node.name: node.ms for node in nodes}
    islands = [
        Island(_name(node), node.op_type, times.get(node.name), *_reason(graph, node))
        for node in _in_float(optimized)
    ]
    return sorted(islands, key=lambda island: -(island.ms or 0.0))


def _reason(graph: Graph, node: onnx.NodeProto) -> tuple[str, str]:
    """Why ``node`` is in float, and the remedy."""
    clamp = _clamp(graph, node)
    if clamp in ("Clip", "Relu"):
        return (
            f"{clamp} was not absorbed: the quantizer behind it ends elsewhere than the clamp",
            "calibrate on images that reach the clamp, and quantize again",
        )
    replace = "replace it in the network, by ReLU for example, or accept its time"
    if clamp:
        return f"{clamp} right after it has no integer kernel here", replace
    if node.op_type not in ABLE:
        if any(name in graph.outputs for name in node.output):
            return "it makes the file's output", "apply it outside of the network"
        return f"{node.op_type} has no integer kernel here", replace
    tied = [f"{_name(other)} ({other.op_type})" for other in _tied(graph, node)]
    if tied:
        more = f" and {len(tied) - 2} more" if len(tied) > 2 else ""
        return (
            f"no quantizer parts it from {', '.join(tied[:2])}{more}",
            "it follows once those are replaced",
        )
    return "no integer kernel was chosen", "quantize the float file again, `secateur quantize`"


def _clamp(graph: Graph, node: onnx.NodeProto) -> str:
    """The activation fused into ``node`` or directly after it; empty if there is none."""
    if node.op_type.startswith("Fused"):
        fused = attribute(node, "activation", b"Relu")
        return fused.decode() if isinstance(fused, bytes) else str(fused)
    near = [node, *graph.consumers.get(node.output[0], [])] if node.op_type in WEIGHTED else [node]
    return next((other.op_type for other in near if other.op_type in ("Clip", "Relu")), "")


def _tied(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes without an integer kernel connected to ``node`` without a conversion."""
    visited, ahead = {node.output[0]: node}, [node]
    while ahead:
        current = ahead.pop()
        near = [graph.producer[name] for name in current.input if name in graph.producer]
        near += [reader for name in current.output for reader in graph.consumers.get(name, [])]
        for other in near:
            ends = other.op_type in CONVERTERS or INTEGER.fullmatch(other.op_type)
            if not ends and other.output[0] not in visited:
                visited[other.output[0]] = other
                ahead.append(other)
    return [other for other in visited.values() if other.op_type not in {*ABLE, *MOVERS}]


def _name(node: onnx.NodeProto) -> str:
    """The node's name, or its output's if ONNX Runtime made the node from a function."""
    return node.name or node.output[0]


def find_conversions(model: onnx.ModelProto) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of conversions at the file's inputs and outputs, and of those in between."""
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    edges: list[str] = []
    inside: list[str] = []
    for node in model.graph.node:
        if node.op_type in CONVERTERS:
            at_edge = node.input[0] in ends or node.output[0] in ends
            (edges if at_edge else inside).append(node.name)
    return tuple(edges), tuple(inside)
