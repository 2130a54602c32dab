"""Standard forms for the quantizer: every linear layer as Gemm, every padding explicit.

ONNX has several forms of x W^T + b: Gemm with W or its transpose; MatMul of a matrix of tokens,
followed by Add; and either followed by a scale for each output (LayerScale, Touvron et al. 2021).
All become Gemm over rows, between two Reshapes if the input has more than two dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from secateur.onnx_ir.batch_folding import Shapes, infer_shapes
from secateur.onnx_ir.model import Graph, attribute

_WINDOWED = ("Conv", "MaxPool", "AveragePool")


@dataclass(frozen=True)
class _Linear:
    """A linear layer x W^T + b.

    Attributes:
        node: The Gemm or MatMul.
        weight: float32 (outputs, inputs).
        bias: float32 (outputs,), or None.
        output: Name of the result after the absorbed nodes.
        absorbed: First outputs of the nodes that are replaced.
    """

    node: onnx.NodeProto
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    output: str
    absorbed: tuple[str, ...]


def standardize_layers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent graph with linear layers as Gemm and explicit padding.

    A layer is kept if its weight is not constant or its input shape is not known.

    Args:
        model: A float graph with one input (N, C, H, W) of known C, H and W; not modified.
    """
    standard = onnx.ModelProto()
    standard.CopyFrom(model)
    graph, shapes = Graph(standard), infer_shapes(standard)
    layers = {}
    for node in graph.nodes:
        _pad_explicitly(graph, node, shapes)
        linear = _linear(graph, node)
        if linear is not None and _rows(linear, shapes) is not None:
            layers[linear.absorbed[-1]] = _absorb_scale(graph, _absorb_bias(graph, linear))
    replaced = {name for linear in layers.values() for name in linear.absorbed}
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    for node in graph.nodes:
        if node.output[0] in layers:
            linear = layers[node.output[0]]
            written, tensors = _as_gemm(linear, shapes)
            nodes += written
            constants += tensors
        elif node.output[0] not in replaced:
            nodes.append(node)
    del standard.graph.node[:]
    standard.graph.node.extend(nodes)
    standard.graph.initializer.extend(constants)
    return standard


def _linear(graph: Graph, node: onnx.NodeProto) -> _Linear | None:
    """Return ``node`` as a linear layer, or None."""
    constant = [name in graph.constants for name in node.input]
    if node.op_type == "MatMul" and constant == [False, True]:
        weight = graph.constant(node.input[1])
        if weight.ndim == 2 and weight.dtype == np.float32:
            return _Linear(node, weight.T, None, node.output[0], (node.output[0],))
    if node.op_type != "Gemm" or attribute(node, "transA", 0) or constant[:2] != [False, True]:
        return None
    if not all(constant[1:]):
        return None
    weight = graph.constant(node.input[1]) * np.float32(attribute(node, "alpha", 1.0))
    weight = weight if attribute(node, "transB", 0) else weight.T
    bias = graph.optional(node, 2)
    if bias is not None:
        bias = bias * np.float32(attribute(node, "beta", 1.0))
        if bias.size not in (1, len(weight)):
            return None
        bias = np.broadcast_to(bias.reshape(-1), len(weight))
    return _Linear(node, weight, bias, node.output[0], (node.output[0],))


def _rows(linear: _Linear, shapes: Shapes) -> tuple[int, ...] | None:
    """The input shape of the layer, if all dimensions but the batch are known."""
    shape = shapes.get(linear.node.input[0], ())
    return shape if len(shape) == 2 or (len(shape) > 2 and all(shape[1:])) else None


def _absorb_bias(graph: Graph, linear: _Linear) -> _Linear:
    value, reader = _constant_behind(graph, linear, "Add")
    if value is None or reader is None:
        return linear
    bias = value if linear.bias is None else linear.bias + value
    return replace(
        linear,
        bias=bias,
        output=reader.output[0],
        absorbed=(*linear.absorbed, reader.output[0]),
    )


def _absorb_scale(graph: Graph, linear: _Linear) -> _Linear:
    value, reader = _constant_behind(graph, linear, "Mul")
    if value is None or reader is None:
        return linear
    return replace(
        linear,
        weight=linear.weight * value[:, None],
        bias=None if linear.bias is None else linear.bias * value,
        output=reader.output[0],
        absorbed=(*linear.absorbed, reader.output[0]),
    )


def _constant_behind(
    graph: Graph, linear: _Linear, operator: str
) -> tuple[npt.NDArray[np.float32] | None, onnx.NodeProto | None]:
    """Return the constant that the only reader adds or multiplies by, and that reader."""
    readers = graph.consumers.get(linear.output, [])
    if len(readers) != 1 or readers[0].op_type != operator or linear.output in graph.outputs:
        return None, None
    others = [name for name in readers[0].input if name != linear.output]
    if len(others) != 1 or others[0] not in graph.constants:
        return None, None
    value = graph.constant(others[0])
    outputs = len(linear.weight)
    along_last = value.size == 1 or (value.shape[-1] == value.size == outputs)
    if not along_last or value.ndim > 2:
        return None, None
    return np.broadcast_to(value.reshape(-1), outputs).astype(np.float32), readers[0]


def _as_gemm(
    linear: _Linear, shapes: Shapes
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return nodes and constants of ``linear`` as Gemm."""
    source, output = linear.node.input[0], linear.output
    shape = shapes[source]
    weight = np.ascontiguousarray(linear.weight)
    constants = {f"{output}/weight": weight}
    if linear.bias is not None:
        constants[f"{output}/bias"] = np.ascontiguousarray(linear.bias)
    parameters = list(constants)
    if len(shape) == 2:
        nodes = [onnx.helper.make_node("Gemm", [source, *parameters], [output], transB=1)]
    else:
        flat, rows = f"{output}/rows", f"{output}/results"
        constants[f"{flat}/shape"] = np.array([-1, shape[-1]], np.int64)
        constants[f"{rows}/shape"] = np.array([-1, *shape[1:-1], len(weight)], np.int64)
        nodes = [
            onnx.helper.make_node("Reshape", [source, f"{flat}/shape"], [flat]),
            onnx.helper.make_node("Gemm", [flat, *parameters], [rows], transB=1),
            onnx.helper.make_node("Reshape", [rows, f"{rows}/shape"], [output]),
        ]
    return nodes, [numpy_helper.from_array(value, name) for name, value in constants.items()]


def _pad_explicitly(graph: Graph, node: onnx.NodeProto, shapes: Shapes) -> None:
    """Replace, in place, automatic padding by explicit padding."""
    kind = attribute(node, "auto_pad", b"NOTSET")
    sides = shapes.get(node.input[0], ())[2:]
    if node.op_type not in _WINDOWED or kind == b"NOTSET" or not sides or 0 in sides:
        return
    kernel = attribute(node, "kernel_shape") or graph.constants[node.input[1]].dims[2:]
    pads = np.zeros((2, len(sides)), np.int64)
    if kind != b"VALID":
        ones = [1] * len(sides)
        strides = np.array(attribute(node, "strides", ones))
        reach = (np.array(kernel) - 1) * np.array(attribute(node, "dilations", ones)) + 1
        total = np.maximum((-(-np.array(sides) // strides) - 1) * strides + reach - sides, 0)
        more, less = total - total // 2, total // 2
        pads[:] = (less, more) if kind == b"SAME_UPPER" else (more, less)
    kept = [item for item in node.attribute if item.name not in ("auto_pad", "pads")]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(onnx.helper.make_attribute("pads", pads.reshape(-1).tolist()))
