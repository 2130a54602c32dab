"""Which tensors of a float graph are quantized, and which of them share one scale.

An operator is *quantizable* where integer runtimes have a kernel for it. Every activation that a
quantizable operator reads is quantized, once, for all its readers; so the logits, which nothing
reads, stay float. Operators that only move data, and Concat, tie what they read to what they give:
tied tensors share one scale, so that moving them stays a copy of bytes. In ShuffleNetV2 this ties
a whole stage, and the half that passes a block untouched is never rounded again.

A ReLU or clip right after a convolution, linear layer or addition is *absorbed*: the operator's
result is quantized with the range found behind the activation, and the clamp of Q does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from secateur.errors import SecateurError
from secateur.onnx_ir.model import WEIGHTED, Graph, activation_inputs, attribute, is_layer
from secateur.quantization.histogram import Range

COMPUTING = (*WEIGHTED, "Add", "GlobalAveragePool", "AveragePool")
MOVING = (
    "MaxPool", "Reshape", "Transpose", "Split", "Slice", "Flatten", "Squeeze", "Unsqueeze",
    "Resize",
)  # fmt: skip
TYING = (*MOVING, "Concat")


@dataclass(frozen=True)
class Placement:
    """Where quantizers go in a float graph.

    Attributes:
        groups: The quantized tensors in the graph's order; those in one tuple share one scale.
        activations: By name of its output, each ReLU or clip that may be absorbed, with the upper
            bound it sets.
    """

    groups: tuple[tuple[str, ...], ...]
    activations: dict[str, float]

    @property
    def tensors(self) -> list[str]:
        """Every quantized tensor."""
        return [name for group in self.groups for name in group]


def find_placement(model: onnx.ModelProto) -> Placement:
    """Decide what to quantize in a float graph.

    Raises:
        SecateurError: The graph has nothing to quantize, or is quantized already.
    """
    graph = Graph(model)
    if any(node.op_type == "QuantizeLinear" for node in graph.nodes):
        raise SecateurError("the graph is quantized already", expected="a float graph")
    chosen = dict.fromkeys(
        name
        for node in graph.nodes
        if is_quantizable(graph, node)
        for name in activation_inputs(graph, node)
    )
    if not chosen:
        raise SecateurError("nothing to quantize in the graph", expected="Conv or Gemm")
    leader = {name: name for name in chosen}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for node in graph.nodes:
        if node.op_type in TYING and is_quantizable(graph, node):
            ends = (*activation_inputs(graph, node), *node.output)
            first, *others = [name for name in ends if name in leader]
            for other in others:
                leader[find(other)] = find(first)
    groups: dict[str, list[str]] = {}
    for name in chosen:
        groups.setdefault(find(name), []).append(name)
    return Placement(tuple(map(tuple, groups.values())), _absorbable(graph))


def is_quantizable(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tell whether ``node`` can run on integers."""
    inputs = activation_inputs(graph, node)
    if node.op_type in WEIGHTED:
        return is_layer(graph, node)
    if node.op_type in ("Add", "Concat"):
        return len(inputs) == len(node.input)
    if node.op_type == "Resize":
        return attribute(node, "mode", b"nearest") == b"nearest" and len(inputs) == 1
    return node.op_type in (*COMPUTING, *MOVING) and len(inputs) == 1


def _absorbable(graph: Graph) -> dict[str, float]:
    bounds = {}
    for node in graph.nodes:
        if node.op_type not in ("Relu", "Clip") or node.output[0] in graph.outputs:
            continue
        before = graph.producer.get(node.input[0])
        if (
            before is None
            or before.op_type not in COMPUTING
            or not is_quantizable(graph, before)
            or len(graph.consumers[node.input[0]]) > 1
            or node.input[0] in graph.outputs
        ):
            continue
        if node.op_type == "Relu":
            bounds[node.output[0]] = float("inf")
            continue
        low, high = graph.optional(node, 1), graph.optional(node, 2)
        if low is not None and low.item() == 0.0:
            bounds[node.output[0]] = float("inf") if high is None else high.item()
    return bounds


def joint_range(group: tuple[str, ...], ranges: dict[str, Range]) -> Range:
    """The smallest range that holds the ranges of a whole group.

    Raises:
        SecateurError: A tensor was not calibrated, or its range is not finite and ordered.
    """
    for name in group:
        if name not in ranges:
            raise SecateurError(
                "no range for a tensor", where=name, remedy="calibrate on the same float file"
            )
        low, high = ranges[name]
        if not (np.isfinite([low, high]).all() and low <= high):
            raise SecateurError("not a range", where=name, found=(low, high))
    return min(ranges[name][0] for name in group), max(ranges[name][1] for name in group)
