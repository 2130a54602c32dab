"""Limits on a network from a file: known operators, bounded memory and bounded work.

Checksums show that a file is complete, not that it is harmless. Every graph is therefore checked
before a runtime loads it: it has no loops, branches, functions, custom operators, external files or
NaN, and all sizes follow from the shapes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from secateur.errors import ArtifactError

OPERATORS = frozenset(
    (
        *("Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "Dropout"),
        *("DequantizeLinear", "Div", "Elu", "Erf", "Exp", "Flatten", "Gather", "Gelu", "Gemm"),
        *("GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization"),
        *("LeakyRelu", "MatMul", "MaxPool", "Mul", "PRelu", "Pad", "Pow", "QuantizeLinear"),
        *("ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split"),
        *("Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
    )
)
"""Operators of ONNX's own domain whose memory and time follow from their shapes."""

MOST_VALUES = 2**27
"""Largest number of elements of a tensor, for one batch of images."""

MOST_WORK = 2**36
"""Largest number of multiply-accumulates, or operations of similar cost, for one image."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_MOST_NODES = 2**14
_LARGEST_OPSET = 30


def check_network(data: bytes, most_values: int = MOST_VALUES) -> tuple[onnx.ModelProto, int]:
    """Return the model of an ONNX file within the limits, and the largest batch size that fits.

    Args:
        data: Bytes of the file.
        most_values: Largest number of elements of a tensor.

    Raises:
        ArtifactError: The file exceeds a limit; the message names the limit and the place.
    """
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is not importable from a stable place
        raise ArtifactError("not an ONNX file", found=error) from error
    _check_parts(model)
    for node in model.graph.node:
        _check_node(node)
    try:
        onnx.checker.check_model(model)
        _check_numbers(model)
        shapes = _shapes(model, most_values)
    except ArtifactError:
        raise
    except Exception as error:  # the checker and shape inference raise several types
        raise ArtifactError("not a valid network", found=error) from error
    _check_work(model, shapes)
    return model, most_values // max(math.prod(shape) for shape in shapes.values())


def _check_parts(model: onnx.ModelProto) -> None:
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise _forbidden("functions, training or sparse tensors")
    domains = {(opset.domain, opset.version <= _LARGEST_OPSET) for opset in model.opset_import}
    if domains != {("", True)}:
        raise _forbidden("operators of other domains or of a newer ONNX")
    if len(graph.node) > _MOST_NODES:
        raise _forbidden(f"more than {_MOST_NODES} nodes")
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise _forbidden("other than one input and one output")
    for tensor in graph.initializer:
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
            raise _forbidden("tensors in other files", tensor.name)
        if tensor.data_type == TensorProto.STRING:
            raise _forbidden("tensors of text", tensor.name)


def _check_numbers(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS and np.isnan(numpy_helper.to_array(tensor)).any():
            raise _forbidden("a tensor that holds NaN", tensor.name)


def _check_node(node: onnx.NodeProto) -> None:
    if node.domain or node.op_type not in OPERATORS:
        raise _forbidden(f"the operator {node.domain}{node.op_type}", node.name)
    for attribute in node.attribute:
        if attribute.type not in (
            onnx.AttributeProto.INT,
            onnx.AttributeProto.INTS,
            onnx.AttributeProto.FLOAT,
            onnx.AttributeProto.FLOATS,
            onnx.AttributeProto.STRING,
        ):
            raise _forbidden(f"the attribute {attribute.name}", node.name)


def _shapes(model: onnx.ModelProto, most_values: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor for one image."""
    one = onnx.ModelProto()
    one.CopyFrom(model)
    sides = one.graph.input[0].type.tensor_type.shape.dim
    if len(sides) != 4:
        raise _forbidden("an input other than (batch, channels, height, width)")
    sides[0].dim_value = 1
    # Shapes stated in the file are discarded; they are inferred from the input's shape.
    del one.graph.value_info[:]
    one.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(one, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        if not value.type.tensor_type.HasField("shape") or any(side < 1 for side in shape):
            raise _forbidden("a tensor of unknown or empty shape", value.name)
        if math.prod(shape) > most_values:
            raise _forbidden(f"a tensor of {math.prod(shape):,} elements", value.name)
        shapes[value.name] = shape
    return shapes


def _check_work(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    total = 0
    for node in model.graph.node:
        made = [shapes.get(name) for name in node.output if name]
        if None in made or any(name and name not in shapes for name in node.input):
            raise _forbidden("a tensor of unknown shape", node.name)
        total += sum(math.prod(shape) for shape in made if shape is not None) * _each(node, shapes)
        if total > MOST_WORK:
            raise _forbidden(f"more than {MOST_WORK:,} multiplications", node.name)


def _each(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Operations for each element of a node's output."""
    if node.op_type == "Conv":
        return max(1, math.prod(shapes[node.input[1]][1:]))
    if node.op_type in ("Gemm", "MatMul"):
        return max(shapes[node.input[1]], default=1)  # summed elements, in either operand
    kernel = [abs(side) for a in node.attribute if a.name == "kernel_shape" for side in a.ints]
    return max(1, math.prod(kernel)) * max(1, len(node.input))


def _forbidden(what: str, where: str | None = None) -> ArtifactError:
    return ArtifactError(
        "a network that is not run", where=where, found=what,
        remedy="unpack the file and look at it, if you trust who made it",
    )  # fmt: skip
