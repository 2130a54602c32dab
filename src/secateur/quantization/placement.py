"""Placement of quantizers: nodes on integers, rounded tensors, and tensors that share a scale.

*Layers* (convolutions and linear layers of constant weights) run on integers. Their inputs are
rounded, and so are the outputs of convolutions, because runtimes have no integer convolution that
gives floats; an integer linear layer may give floats. An addition, a pool or an operator that only
moves data runs on integers if all its inputs are rounded anyway, and a product if it scales a
rounded map by a gate in [0, 1]. All other operators stay in float: normalizations, attention, GELU,
SiLU and unknown operators. Float operators read the results of float operators unrounded, so that
the residual stream of a transformer keeps its precision.

Operators that only move data, and Concat, tie their inputs to their outputs: tied tensors share one
scale, so that moving them stays a copy of bytes. In ShuffleNetV2 this ties all tensors of a stage,
so that the half that bypasses a block is not rounded again.

A ReLU or clip directly after a convolution, linear layer or addition is *absorbed*: the operator's
result is rounded with the range after the activation, and the clamp of Q replaces the activation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from secateur.errors import SecateurError
from secateur.onnx_ir.model import WEIGHTED, Graph, activation_inputs, attribute, is_layer
from secateur.quantization.histogram import Range

COMPUTING = (*WEIGHTED, "Add", "Mul", "GlobalAveragePool", "AveragePool")
MOVING = (
    "MaxPool", "Reshape", "Transpose", "Split", "Slice", "Flatten", "Squeeze", "Unsqueeze",
    "Resize",
)  # fmt: skip
TYING = (*MOVING, "Concat")
GATES = ("Sigmoid", "HardSigmoid")
"""Operators with results in [0, 1]."""


@dataclass(frozen=True)
class Placement:
    """Positions of quantizers in a float graph.

    Attributes:
        groups: Rounded tensors in the graph's order; tensors in one tuple share a scale.
        activations: From output name of each ReLU or clip that may be absorbed to its upper bound.
        unrounded: Rounded tensors that some float operators read before rounding.
        integer: First output of each node that runs on integers.
    """

    groups: tuple[tuple[str, ...], ...]
    activations: dict[str, float]
    unrounded: frozenset[str] = frozenset()
    integer: frozenset[str] = frozenset()

    @property
    def tensors(self) -> list[str]:
        """All rounded tensors."""
        return [name for group in self.groups for name in group]

    def reads_unrounded(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether ``node`` reads the tensor ``name`` before rounding."""
        return name in self.unrounded and node.output[0] not in self.integer


def find_placement(model: onnx.ModelProto) -> Placement:
    """Decide what to round in a float graph.

    Raises:
        SecateurError: The graph has nothing to quantize, or is quantized already.
    """
    graph = Graph(model)
    if any(node.op_type == "QuantizeLinear" for node in graph.nodes):
        raise SecateurError("the graph is quantized already", expected="a float graph")
    activations = _absorbable(graph)
    nodes = _integer_nodes(graph, activations)
    chosen = dict.fromkeys(name for node in nodes for name in activation_inputs(graph, node))
    if not chosen:
        raise SecateurError("nothing to quantize in the graph", expected="Conv or Gemm")
    behind = _behind(graph, activations)
    results = (behind.get(node.output[0], node.output[0]) for node in nodes if _rounds(node))
    chosen |= dict.fromkeys(name for name in results if name not in graph.outputs)
    integer = frozenset(node.output[0] for node in nodes)
    activations = {
        name: bound
        for name, bound in activations.items()
        if graph.producer[name].input[0] in integer
    }
    unrounded = frozenset(
        name
        for name in chosen
        if name in graph.producer
        and name not in activations
        and graph.producer[name].output[0] not in integer
        and any(reader.output[0] not in integer for reader in graph.consumers[name])
    )
    return Placement(_tied(graph, nodes, chosen), activations, unrounded, integer)


def _integer_nodes(graph: Graph, activations: dict[str, float]) -> list[onnx.NodeProto]:
    """The nodes that run on integers, in the graph's order."""
    behind = _behind(graph, activations)
    rounded = set(graph.inputs)
    integer: set[str] = set()
    for node in graph.nodes:
        if is_layer(graph, node):
            integer.add(node.output[0])
            rounded |= {node.input[0]}
            if node.op_type == "Conv":
                rounded.add(behind.get(node.output[0], node.output[0]))
    growing = True
    while growing:
        growing = False
        for node in graph.nodes:
            if node.output[0] in integer or not is_quantizable(graph, node):
                continue
            inputs = activation_inputs(graph, node)
            gates = {name for name in inputs if node.op_type == "Mul" and _is_gate(graph, name)}
            if not set(inputs) - gates or not set(inputs) - gates <= rounded:
                continue
            integer.add(node.output[0])
            rounded |= {*gates, *node.output}
            rounded |= {behind[name] for name in node.output if name in behind}
            growing = True
    return [node for node in graph.nodes if node.output[0] in integer]


def _rounds(node: onnx.NodeProto) -> bool:
    """Whether integer kernels of ``node`` have integer outputs only."""
    return node.op_type in COMPUTING and node.op_type != "Gemm"


def _behind(graph: Graph, activations: dict[str, float]) -> dict[str, str]:
    """From input to output of each activation that may be absorbed."""
    return {graph.producer[name].input[0]: name for name in activations}


def _is_gate(graph: Graph, name: str) -> bool:
    return name in graph.producer and graph.producer[name].op_type in GATES


def _tied(
    graph: Graph, nodes: list[onnx.NodeProto], chosen: dict[str, None]
) -> tuple[tuple[str, ...], ...]:
    """Group the tensors of ``chosen`` that must share a scale."""
    leader = {name: name for name in chosen}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for node in nodes:
        if node.op_type in TYING:
            ends = (*activation_inputs(graph, node), *node.output)
            first, *others = [name for name in ends if name in leader]
            for other in others:
                leader[find(other)] = find(first)
    groups: dict[str, list[str]] = {}
    for name in chosen:
        groups.setdefault(find(name), []).append(name)
    return tuple(map(tuple, groups.values()))


def is_quantizable(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether ``node`` can run on integers."""
    inputs = activation_inputs(graph, node)
    if node.op_type in WEIGHTED:
        return is_layer(graph, node)
    if node.op_type in ("Add", "Concat"):
        return len(inputs) == len(node.input)
    if node.op_type == "Mul":
        gates = [_is_gate(graph, name) for name in inputs]
        gated = sum(gates) == 1 and len(inputs) == len(node.input)
        return gated and graph.producer[inputs[gates.index(True)]].input[0] not in inputs
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
        low, high = _bound(graph, node, 1), _bound(graph, node, 2)
        if low == 0.0 and high is not None:
            bounds[node.output[0]] = high
    return bounds


def _bound(graph: Graph, node: onnx.NodeProto, index: int) -> float | None:
    """A bound of a clip; infinite if missing, None if not constant."""
    if index >= len(node.input) or not node.input[index]:
        return float("-inf") if index == 1 else float("inf")
    if node.input[index] not in graph.constants:
        return None
    return float(graph.constant(node.input[index]).item())


def joint_range(group: tuple[str, ...], ranges: dict[str, Range]) -> Range:
    """The union of the ranges of a group.

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
