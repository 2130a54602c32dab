"""Constant folding of any ONNX graph, for any batch size.

Exporters compute shapes inside the graph: Shape, Gather, Concat, Expand, Reshape. With a fixed
input shape, ONNX Runtime folds them into constants. The graph is folded for two batch sizes.
Constants that differ between the two depend on the batch size, and are replaced by ones that fit
any batch size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from secateur.onnx_ir.model import Graph, attribute

Shapes = dict[str, tuple[int, ...]]


class BatchError(Exception):
    """The graph works for one batch size only; the message names the node."""


def fold_constants(
    model: onnx.ModelProto, shape: tuple[int, ...], batches: Sequence[int]
) -> onnx.ModelProto:
    """Return an equivalent folded graph for any batch size.

    Args:
        model: A float graph with one input (N, C, H, W).
        shape: The fixed C, H and W.
        batches: Two batch sizes that the graph accepts, or the only one that it accepts. With one
            size, the batch dimension of a constant is a guess; run the result to check it.

    Raises:
        BatchError: The graph cannot be made independent of the batch size.
    """
    graphs = [optimize(model, (batch, *shape)) for batch in batches]
    _open_batch(graphs, [infer_shapes(graph) for graph in graphs], batches)
    opened = graphs[0]
    side = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    for value in [*opened.graph.input, *opened.graph.output]:
        for dim in value.type.tensor_type.shape.dim[:1]:
            dim.dim_param = side
    del opened.graph.value_info[:]
    return opened


def optimize(model: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return the equivalent graph after ONNX Runtime's basic optimizations.

    They fold constants and batch-norms, merge padding, and recognize LayerNormalization and Gelu.

    Args:
        model: A float graph with one input (N, C, H, W).
        shape: N, C, H and W; 0 leaves a dimension open.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for dim, side in zip(fixed.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        if side:
            dim.dim_value = side
    # The shapes in the file are for its own batch size.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        onnxruntime.InferenceSession(
            fixed.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            # This optimization would separate a linear layer from its bias.
            disabled_optimizers=["TransposeOptimizer"],
        )
        optimized = onnx.load(Path(folder) / "folded.onnx")
    shapes = infer_shapes(optimized)
    for value in optimized.graph.output:
        kind = value.type.tensor_type
        if not kind.HasField("shape") and all(shapes.get(value.name, (0,))):
            kind.shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=side) for side in shapes[value.name]
            )
    return optimized


def infer_shapes(model: onnx.ModelProto) -> Shapes:
    """Return the shape of every tensor; 0 for unknown dimensions."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _open_batch(
    models: list[onnx.ModelProto], shapes: list[Shapes], batches: Sequence[int]
) -> None:
    """Replace every constant of the first of ``models`` that depends on the batch size."""
    graphs = [Graph(model) for model in models]
    kinds = [[node.op_type for node in graph.nodes] for graph in graphs]
    if kinds[0] != kinds[-1]:
        raise BatchError("the graph is another one for another batch")
    nodes: list[onnx.NodeProto] = []
    added: list[onnx.TensorProto] = []
    for node, other in zip(graphs[0].nodes, graphs[-1].nodes, strict=True):
        if node.op_type == "Reshape":
            pair = shapes[0].get(node.output[0]), shapes[-1].get(other.output[0])
            added.append(_open_reshape(node, *pair, batches[0]))
            nodes.append(node)
            continue
        depends = [
            index
            for index, (name, twin) in enumerate(zip(node.input, other.input, strict=True))
            if name in graphs[0].constants
            and _depends(node, graphs[0].constant(name), graphs[-1].constant(twin), batches)
        ]
        if depends and node.op_type == "Concat":
            padded, tensors = _pad_instead(graphs[0], node, shapes[0])
            nodes += padded
            added += tensors
            continue
        for index in depends:
            added.append(_first_of_batch(graphs[0], node, index))
        nodes.append(node)
    del models[0].graph.node[:]
    models[0].graph.node.extend(nodes)
    models[0].graph.initializer.extend(added)


def _depends(
    node: onnx.NodeProto, value: npt.NDArray, twin: npt.NDArray, batches: Sequence[int]
) -> bool:
    """Whether a constant of ``node`` depends on the batch size."""
    if len(batches) > 1:
        return value.shape != twin.shape or not np.array_equal(value, twin, equal_nan=True)
    # With one batch size only: a Concat with a tensor of the batch repeats its constant for each
    # image.
    return (
        node.op_type == "Concat"
        and value.ndim > 2
        and len(value) == batches[0]
        and attribute(node, "axis") % value.ndim != 0
    )


def _open_reshape(
    node: onnx.NodeProto,
    shape: tuple[int, ...] | None,
    twin: tuple[int, ...] | None,
    batch: int,
) -> onnx.TensorProto:
    """Set a target shape with -1 for the batch dimension; return it."""
    if shape is None or twin is None or 0 in shape or len(shape) != len(twin):
        raise BatchError(f"the shape that {node.name} gives is not known")
    places = [index for index, (a, b) in enumerate(zip(shape, twin, strict=True)) if a != b]
    if shape == twin:  # one batch size only, or no batch dimension in this tensor
        places = [0] if shape and shape[0] % batch == 0 else []
    if len(places) > 1:
        raise BatchError(f"{node.name} spreads the batch over two dimensions")
    target = np.array(shape, np.int64)
    target[places] = -1
    node.input[1] = f"{node.output[0]}/shape"
    return numpy_helper.from_array(target, node.input[1])


def _first_of_batch(graph: Graph, node: onnx.NodeProto, index: int) -> onnx.TensorProto:
    """Replace a constant by its part for one image; return it."""
    value = graph.constant(node.input[index])
    if value.ndim < 2 or not (value == value[:1]).all():
        raise BatchError(f"{node.name or node.op_type} reads a constant made for one batch")
    node.input[index] = f"{node.output[0]}/constant{index}"
    return numpy_helper.from_array(np.ascontiguousarray(value[:1]), node.input[index])


def _pad_instead(
    graph: Graph, node: onnx.NodeProto, shapes: Shapes
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Replace a concatenation of constants and one tensor, for example a class token.

    The tensor is padded with zeros, and the constants are added to them.
    """
    tensors = [name for name in node.input if name not in graph.constants]
    axis, shape = attribute(node, "axis"), shapes.get(tensors[0], ()) if tensors else ()
    values = [graph.constant(name) for name in node.input if name in graph.constants]
    repeated = all((value == value[:1]).all() for value in values)
    if len(tensors) != 1 or not shape or 0 in shape or not repeated or axis % len(shape) == 0:
        raise BatchError(f"{node.name or node.op_type} concatenates constants made for one batch")
    axis %= len(shape)
    at = list(node.input).index(tensors[0])
    room = np.zeros((1, *shape[1:]), values[0].dtype)
    constants = iter(values)
    parts = [room if name == tensors[0] else next(constants)[:1] for name in node.input]
    pads = np.zeros((2, len(shape)), np.int64)
    pads[0, axis] = sum(part.shape[axis] for part in parts[:at])
    pads[1, axis] = sum(part.shape[axis] for part in parts[at + 1 :])
    output = node.output[0]
    names = {key: f"{output}/{key}" for key in ("pads", "padded", "tokens")}
    return [
        onnx.helper.make_node("Pad", [tensors[0], names["pads"]], [names["padded"]]),
        onnx.helper.make_node("Add", [names["padded"], names["tokens"]], [output]),
    ], [
        numpy_helper.from_array(pads.reshape(-1), names["pads"]),
        numpy_helper.from_array(np.concatenate(parts, axis), names["tokens"]),
    ]
