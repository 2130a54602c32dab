"""Imports an ONNX classifier as a graph that can be quantized."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import inliner, version_converter

from secateur.errors import NetworkError, SecateurError
from secateur.onnx_ir.batch_folding import BatchError, fold_constants, optimize
from secateur.onnx_ir.linear_layers import standardize_layers
from secateur.onnx_ir.model import OWN_DOMAIN, opset_of, read_model, tidy
from secateur.onnx_ir.shuffles import straighten
from secateur.runtimes import OnnxRuntime

OLDEST_OPSET = 13
"""The first with scales for each channel (DequantizeLinear's ``axis``)."""

IMPORT_OPSET = 21
"""Files are converted to this version that are older, or newer than :func:`newest_opset`."""

TOLERANCE = 1e-3
"""Largest difference between imported graph and file, relative to the largest logit."""

CONTROL_FLOW = ("If", "Loop", "Scan")

Array = npt.NDArray[np.float32]


def import_onnx(path: Path, images: Array) -> onnx.ModelProto:
    """Read a float classifier and convert it to the form for quantization.

    Constants and batch-norms are folded, the batch size is open, linear layers are Gemm, and
    channel shuffles are folded into weights. Names of input and output and metadata are kept. The
    result is compared with the file on ``images``.

    Args:
        path: An ONNX file of opset 13 or newer, with or without external data, with one float32
            input (N, C, H, W) and one float32 output (N, classes).
        images: Prepared images, float32 (N, C, H, W), at least one.

    Returns:
        A graph for any batch size, or if that is not possible, for that of the file.

    Raises:
        FileError: The file or its external data cannot be read.
        NetworkError: The file is not such a classifier; the message names the node or the input.
    """
    model = _without_defaults(read_model(path))
    check_classifier(model, path)
    shape = _input_shape(model, path, images.shape)
    try:
        expected = _logits(model, images)
    except Exception as error:  # onnxruntime's exceptions have no public base class
        raise NetworkError("ONNX Runtime cannot run the file", where=path, found=error) from error
    if expected.ndim != 2:
        raise NetworkError(
            "not a classifier",
            where=path,
            expected="one output (N, classes)",
            found=f"{expected.shape} for images of shape {images.shape}",
        )
    converted = _converted(inliner.inline_local_functions(model), path)
    difference = np.inf
    for folded in _folded(converted, shape):
        _check_operators(folded, path)
        standard = onnx.shape_inference.infer_shapes(standardize_layers(folded), data_prop=True)
        imported = straighten(tidy(standard))
        imported.metadata_props.extend(model.metadata_props)
        difference = _difference(imported, images, expected)
        if difference <= TOLERANCE:
            return imported
    raise NetworkError(
        "the imported graph computes something else than the file",
        where=path,
        expected=f"logits within {TOLERANCE:g} of the largest",
        found=f"{difference:.3g}",
        remedy="export it with a dynamic batch, or report it with the file",
    )


def _folded(model: onnx.ModelProto, shape: tuple[int, ...]) -> Iterator[onnx.ModelProto]:
    """Yield the graph for any batch size if possible, then that for the file's batch size."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    with contextlib.suppress(BatchError):
        yield fold_constants(model, shape, [batch] if batch else [2, 3])
    yield optimize(model, (batch, *shape))


def check_classifier(model: onnx.ModelProto, path: Path) -> None:
    """Check that a graph is a float classifier with one image input and standard operators.

    Raises:
        NetworkError: It is not; the message has reason, place and remedy.
    """
    _check_operators(model, path, folded=False)
    inputs, outputs = list(model.graph.input), list(model.graph.output)
    expected = "one float32 input (N, C, H, W)"
    if len(inputs) != 1:
        raise NetworkError(
            "not an image classifier",
            where=path,
            expected=expected,
            found=f"{len(inputs)} inputs: {', '.join(describe_value(v) for v in inputs)}",
            remedy="export the network with the image as its only input",
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT or len(kind.shape.dim) != 4:
        raise NetworkError(
            "not an image classifier",
            where=path,
            expected=expected,
            found=describe_value(inputs[0]),
            remedy="export the network in float32, with images as (N, C, H, W)",
        )
    if len(outputs) != 1 or outputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise NetworkError(
            "not an image classifier",
            where=path,
            expected="one float32 output (N, classes)",
            found=f"{len(outputs)}: {', '.join(describe_value(v) for v in outputs)}",
            remedy="export the logits alone",
        )


def describe_value(value: onnx.ValueInfoProto) -> str:
    """A tensor's name, element type and shape in words, such as ``image float (n, 3, 32, 32)``."""
    kind = value.type.tensor_type
    sides = [str(dim.dim_param or dim.dim_value or "?") for dim in kind.shape.dim]
    element = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    return f"{value.name} {element} ({', '.join(sides)})"


def _without_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove weights from the list of inputs, where old exporters include them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def _check_operators(model: onnx.ModelProto, path: Path, *, folded: bool = True) -> None:
    """Check that there are no custom operators, quantizers or remaining control flow."""
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _all_nodes(model):
        name = node.name or (node.output[0] if node.output else "")
        if node.domain not in OWN_DOMAIN and (node.domain, node.op_type) not in functions:
            raise NetworkError(
                "a custom operator",
                where=f"{path}, node {name}",
                expected="operators of ONNX's own domain",
                found=f"{node.domain}.{node.op_type}",
                remedy="export the network in standard operators",
            )
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"):
            raise NetworkError(
                "the graph is quantized already",
                where=f"{path}, node {name}",
                expected="a float graph",
                found=node.op_type,
                remedy="quantize the float file it was made from",
            )
        if node.op_type in CONTROL_FLOW and (folded or node.op_type != "If"):
            raise NetworkError(
                "control flow",
                where=f"{path}, node {name}",
                expected="a graph without loops and branches",
                found=node.op_type,
                remedy="export the network with torch.onnx.export(..., dynamo=True)",
            )


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _input_shape(model: onnx.ModelProto, path: Path, images: tuple[int, ...]) -> tuple[int, ...]:
    """Channels, height and width of an image, checked against the file's input."""
    value = model.graph.input[0]
    sides = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if len(images) != 4 or any(a and a != b for a, b in zip(sides[1:], images[1:], strict=True)):
        raise NetworkError(
            "images do not fit the network",
            where=path,
            expected=describe_value(value),
            found=f"images of shape {tuple(images)}",
            remedy="prepare the images as the network was trained",
        )
    return tuple(images[1:])


def _converted(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return ``model`` in an opset that is at least :data:`IMPORT_OPSET` and can be quantized."""
    opset = opset_of(model)
    if IMPORT_OPSET <= opset <= newest_opset():
        return model
    if opset < OLDEST_OPSET:
        raise NetworkError(
            "an ONNX file that is too old",
            where=path,
            expected=f"opset {OLDEST_OPSET} or newer",
            found=f"opset {opset}",
            remedy="export it again, or convert it with onnx.version_converter",
        )
    try:
        return version_converter.convert_version(model, IMPORT_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own types
        raise NetworkError(
            f"cannot convert the file to opset {IMPORT_OPSET}",
            where=path,
            found=error,
            remedy=f"export it with opset_version={IMPORT_OPSET}",
        ) from error


@functools.cache
def newest_opset() -> int:
    """The newest opset of which the installed onnx and ONNX Runtime know ``QuantizeLinear``."""
    text = '<ir_version: 10, opset_import: ["": {}]> g (float[n] x) => (uint8[n] y) {{ {} }}'
    body = "s = Constant <value_float = 1.0> () y = QuantizeLinear (x, s)"
    for opset in range(onnx.defs.onnx_opset_version(), IMPORT_OPSET, -1):
        model = onnx.parser.parse_model(text.format(opset, body))
        with contextlib.suppress(SecateurError):
            OnnxRuntime(model.SerializeToString(), 1)
            return opset
    return IMPORT_OPSET


def _difference(imported: onnx.ModelProto, images: Array, expected: Array) -> float:
    """The largest difference between logits, relative to the largest logit."""
    try:
        logits = _logits(imported, images)
    except SecateurError:  # the guessed batch dimension was wrong
        return np.inf
    difference = float(np.abs(logits - expected).max())
    return difference / (float(np.abs(expected).max()) + 1e-6)


def _logits(model: onnx.ModelProto, images: Array) -> Array:
    return OnnxRuntime(model.SerializeToString(), threads=1).run(images)
