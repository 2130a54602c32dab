"""The channels of a tensor in a float graph: who makes them, who reads them, in which weights."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import count
from math import prod

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from secateur.onnx_graph import Graph, attribute, is_layer

POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")

Change = Callable[[npt.NDArray], npt.NDArray]
"""Of an array whose first dimension counts channels."""
Test = Callable[[onnx.NodeProto], bool]
Shapes = dict[str, tuple[int, ...]]
"""Of each tensor; 0 where a dimension is not known."""


def find_shapes(model: onnx.ModelProto) -> Shapes:
    """Infer the shape of every tensor between nodes.

    Raises:
        onnx.shape_inference.InferenceError: The graph breaks ONNX's rules.
    """
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in [*graph.input, *graph.value_info, *graph.output]
    }


def find_makers(graph: Graph, name: str, passes: Test) -> list[onnx.NodeProto]:
    """What makes the channels of ``name``, back to a convolution; nothing if they are not free.

    Args:
        graph: The graph.
        name: Of a tensor.
        passes: Whether a node before the convolution's end keeps channels apart.
    """
    nodes, node = [], graph.producer.get(name)
    while node is not None and passes(node) and _is_private(graph, node.input[0]):
        nodes.append(node)
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type != "Conv" or not mixes(graph, node):
        return []
    return [*nodes, node]


def find_readers(
    graph: Graph, name: str, passes: Test, ends: Test, skip: Collection[str] = ()
) -> list[onnx.NodeProto]:
    """What reads the channels of ``name``, on to the last that does; nothing if they are not free.

    Args:
        graph: The graph.
        name: Of a tensor.
        passes: Whether a node hands channels on.
        ends: Whether a node takes all channels, and what it makes is another matter.
        skip: First outputs of nodes that read ``name`` and do not count.
    """
    if name in graph.outputs:
        return []
    found = []
    for node in graph.consumers.get(name, []):
        if node.output[0] in skip:
            continue
        found.append(node)
        if not ends(node):
            further = find_readers(graph, node.output[0], passes, ends) if passes(node) else []
            if not further:
                return []
            found += further
    return found


def _is_private(graph: Graph, name: str) -> bool:
    """Tell whether one node alone reads ``name``."""
    return len(graph.consumers.get(name, [])) == 1 and name not in graph.outputs


def mixes(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tell whether each row of ``node``'s weights reads all channels."""
    return is_layer(graph, node) and attribute(node, "group", 1) == 1


def is_depthwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tell whether each row of ``node``'s weights reads the channel that it makes."""
    if node.op_type != "Conv" or not is_layer(graph, node):
        return False
    group = attribute(node, "group", 1)
    return group != 1 and (group, 1) == tuple(graph.constants[node.input[1]].dims[:2])


def flattens(shapes: Shapes, node: onnx.NodeProto) -> bool:
    """Tell whether ``node`` lays the channels of an image out one after another."""
    if node.op_type not in ("Flatten", "Reshape"):
        return False
    before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
    return len(before) > 1 and len(after) == 2 and after[1] == prod(before[1:]) > 0


def change_rows(graph: Graph, node: onnx.NodeProto, change: Change) -> None:
    """Change the weights and biases that make the channels of ``node``, if it has any."""
    if node.op_type == "Conv":
        for index, name in enumerate(node.input[1:], 1):
            if name:
                replace_constant(graph, node, index, change(graph.constant(name)))


def change_columns(graph: Graph, node: onnx.NodeProto, channels: int, change: Change) -> None:
    """Change the weights that read the ``channels`` of ``node``, each a block of columns."""
    weight = graph.constant(node.input[1])
    blocks = weight.reshape(len(weight), channels, -1).swapaxes(0, 1)
    changed = change(blocks).swapaxes(0, 1)
    replace_constant(graph, node, 1, changed.reshape(len(weight), -1, *weight.shape[2:]))


def replace_constant(graph: Graph, node: onnx.NodeProto, index: int, value: npt.NDArray) -> None:
    """Give ``node`` the constant ``value``; what another node reads too stays as it is."""
    name = node.input[index]
    if sum(list(other.input).count(name) for other in graph.nodes) > 1:
        others = (f"{name}/{number}" for number in count(1))
        name = next(other for other in others if other not in graph.constants)
    graph.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    node.input[index] = name


def add_sizes(graph: Graph, sizes: list[int]) -> str:
    """Add a constant that a Split cuts by, and return its name."""
    # A name that says the value: the same sizes elsewhere are the same constant.
    name = "sizes_" + "_".join(map(str, sizes))
    graph.constants[name] = numpy_helper.from_array(np.array(sizes, np.int64), name)
    return name


def store(model: onnx.ModelProto, graph: Graph, nodes: list[onnx.NodeProto]) -> None:
    """Set the nodes of ``model``, and its constants to those of ``graph`` that they read."""
    read = {name for node in nodes for name in node.input}
    constants = [tensor for name, tensor in graph.constants.items() if name in read]
    old = model.graph
    model.graph.CopyFrom(onnx.helper.make_graph(nodes, old.name, old.input, old.output, constants))
