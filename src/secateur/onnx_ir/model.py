"""Access to the producers, consumers and constants of an ONNX graph, and cleanup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from secateur.disk import write_bytes
from secateur.errors import FileError, SecateurError
from secateur.onnx_ir.reader import read_onnx

IR_VERSION = 10
OPSET = 18

OWN_DOMAIN = ("", "ai.onnx")
"""The two names of the domain of standard ONNX operators."""

WEIGHTED = ("Conv", "Gemm")
"""Operators with weights: convolutions and linear layers."""


class Graph:
    """A snapshot of the edges of ``model.graph``; make a new one after changing the model.

    Attributes:
        constants: Initializers by name.
        producer: The node that produces each tensor; inputs and constants of the graph have none.
        consumers: The nodes that read each tensor, in the graph's order.
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def constant(self, name: str) -> npt.NDArray:
        """The value of the initializer ``name``."""
        return numpy_helper.to_array(self.constants[name])

    def optional(self, node: onnx.NodeProto, index: int) -> npt.NDArray | None:
        """The constant at input ``index`` of ``node``, or None if it has no such input."""
        if index >= len(node.input) or not node.input[index]:
            return None
        return self.constant(node.input[index])


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of one attribute of ``node``."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def activation_inputs(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """The inputs of ``node`` that carry activations, not weights, shapes or bounds."""
    count = len(node.input) if node.op_type in ("Add", "Concat", "Mul") else 1
    return [name for name in node.input[:count] if name and name not in graph.constants]


def is_layer(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether ``node`` is a 2-D convolution or linear layer with constant weights."""
    if node.op_type not in WEIGHTED or len(activation_inputs(graph, node)) != 1:
        return False
    if any(name and name not in graph.constants for name in node.input[1:]):
        return False
    if node.op_type == "Conv":
        return len(graph.constants[node.input[1]].dims) == 4
    factors = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return bool(factors and not attribute(node, "transA", 0) and attribute(node, "transB", 0))


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        FileError: The file is missing or is not ONNX.
    """
    model = read_onnx(path)
    if not model.graph.node:
        raise FileError("an ONNX file without a graph", where=path)
    return model


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Check ``model`` and write it atomically; the same model gives the same bytes.

    Raises:
        SecateurError: The graph breaks ONNX's rules.
        StoreError: The file cannot be written.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SecateurError("not a valid ONNX graph", where=path, found=error) from error
    write_bytes(path, model.SerializeToString(deterministic=True))


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard ONNX operators that ``model`` uses."""
    return max(
        (item.version for item in model.opset_import if item.domain in OWN_DOMAIN), default=0
    )


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a cleaned graph for integer runtimes.

    A mean over height and width becomes GlobalAveragePool. Identity, Dropout, unused constants,
    documentation strings and metadata of the exporting machine are removed. Tensors between nodes
    are renamed by operator and position; constants keep the names of the parameters.
    """
    nodes = _without_identities(model, _with_global_pools(model))
    used = {name for node in nodes for name in node.input}
    constants = [_bare(tensor) for tensor in model.graph.initializer if tensor.name in used]
    _rename(nodes, {tensor.name for tensor in constants}, model.graph)
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [_bare_value(value) for value in model.graph.input],
        [_bare_value(value) for value in model.graph.output],
        constants,
    )
    opset = onnx.helper.make_opsetid("", opset_of(model))
    ir_version = max(IR_VERSION, onnx.helper.find_min_ir_version_for([opset]))
    return onnx.helper.make_model(
        graph, opset_imports=[opset], ir_version=ir_version, producer_name="secateur"
    )


def _with_global_pools(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Replace each mean over the last two of four dimensions by GlobalAveragePool."""
    graph = Graph(model)
    values = [*model.graph.value_info, *model.graph.input]
    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    nodes = []
    for node in graph.nodes:
        axes = graph.optional(node, 1) if node.op_type == "ReduceMean" else None
        over_pixels = (
            axes is not None
            and rank.get(node.input[0]) == 4
            and {int(axis) % 4 for axis in axes} == {2, 3}
        )
        if not over_pixels:
            nodes.append(node)
            continue
        source, target = node.input[0], node.output[0]
        keeps = bool(attribute(node, "keepdims", 1))
        pooled = target if keeps else f"{target}/pooled"
        nodes.append(onnx.helper.make_node("GlobalAveragePool", [source], [pooled]))
        if not keeps:
            nodes.append(onnx.helper.make_node("Flatten", [pooled], [target], axis=1))
    return nodes


def _without_identities(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """Remove nodes that only copy at inference, unless their output is an output of the graph."""
    outputs = {value.name for value in model.graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        if node.op_type in ("Identity", "Dropout") and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    return kept


def _rename(nodes: list[onnx.NodeProto], constants: set[str], graph: onnx.GraphProto) -> None:
    fixed = constants | {value.name for value in [*graph.input, *graph.output]} | {""}
    names = {name: name for name in fixed}
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type.lower()}_{number}"
        for index, name in enumerate(node.output):
            tail = f"_{index}" if len(node.output) > 1 else ""
            names.setdefault(name, node.name + tail)
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        node.ClearField("doc_string")
        del node.metadata_props[:]


def _bare(tensor: onnx.TensorProto) -> onnx.TensorProto:
    # Not ascontiguousarray, which turns a scalar into a vector.
    return numpy_helper.from_array(
        np.asarray(numpy_helper.to_array(tensor), order="C"), tensor.name
    )


def _bare_value(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    kind = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    return onnx.helper.make_tensor_value_info(value.name, kind.elem_type, shape)
