"""ONNX operators in PyTorch: functions of a node, its inputs and the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import SecateurError
from secateur.onnx_ir.model import Graph, attribute


def _sides(node: onnx.NodeProto, name: str, default: int) -> tuple[int, int]:
    rows, columns = attribute(node, name, [default, default])
    return rows, columns


def _padded(node: onnx.NodeProto, x: Tensor, value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """Return ``x`` and its remaining padding; uneven padding is applied here."""
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    kernel = attribute(node, "kernel_shape", [1, 1])
    # oneDNN's weight gradient of a map smaller than the kernel is slow: see training/cpu.py.
    small = torch.is_grad_enabled() and min(x.shape[2:]) < max(kernel)
    if (top, left) == (bottom, right) and not small:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, weight, *rest = inputs
    x, padding = _padded(node, x)
    return F.conv2d(
        x,
        torch.as_tensor(weight),
        rest[0] if rest else None,
        _sides(node, "strides", 1),
        padding,
        _sides(node, "dilations", 1),
        attribute(node, "group", 1),
    )


def _gemm(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, weight, *rest = inputs
    return F.linear(x, torch.as_tensor(weight), rest[0] if rest else None)


def _clip(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    bounds = (None if bound is None else bound.item() for bound in (*inputs[1:], None, None)[:2])
    return inputs[0].clamp(*bounds)


def _max_pool(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, padding = _padded(node, inputs[0], -float("inf"))
    kernel = attribute(node, "kernel_shape")
    ceil = bool(attribute(node, "ceil_mode", 0))
    return F.max_pool2d(
        x, kernel, _sides(node, "strides", 1), padding, _sides(node, "dilations", 1), ceil
    )


def _average_pool(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    if (top, left) != (bottom, right):
        raise SecateurError("uneven padding of an average", where=f"node {node.name}")
    return F.avg_pool2d(
        inputs[0],
        attribute(node, "kernel_shape"),
        _sides(node, "strides", 1),
        (top, left),
        bool(attribute(node, "ceil_mode", 0)),
        bool(attribute(node, "count_include_pad", 0)),
    )


def _reshape(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, shape = inputs[0], [int(side) for side in inputs[1]]
    return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(shape)])


def _split(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> tuple[Tensor, ...]:
    axis = attribute(node, "axis", 0)
    if len(inputs) > 1:
        return inputs[0].split([int(size) for size in inputs[1]], axis)
    return inputs[0].tensor_split(len(node.output), axis)


def _slice(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    axes = range(len(starts)) if axes is None else axes
    steps = np.ones(len(starts), int) if steps is None else steps
    where = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        where[int(axis)] = slice(int(start), int(end), int(step))
    return x[tuple(where)]


def _resize(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, scales = inputs[0], inputs[2] if len(inputs) > 2 else None
    if attribute(node, "mode", b"nearest") != b"nearest" or scales is None or not len(scales):
        raise SecateurError("a resize other than by nearest and factors", where=f"node {node.name}")
    return F.interpolate(x, scale_factor=tuple(float(s) for s in scales[2:]), mode="nearest")


def _axes(inputs: list[Any]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in inputs[1])


def _tensor(value: Any) -> Tensor:
    # Copied, because PyTorch must not share the memory of the file.
    return value if isinstance(value, Tensor) else torch.tensor(np.array(value))


def _pad(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, pads = inputs[0], [int(pad) for pad in inputs[1]]
    value = 0.0 if len(inputs) < 3 or inputs[2] is None else float(inputs[2])
    if attribute(node, "mode", b"constant") != b"constant" or len(inputs) > 3:
        raise SecateurError("padding other than by a constant", where=f"node {node.name}")
    sides = zip(reversed(pads[: x.ndim]), reversed(pads[x.ndim :]), strict=True)
    return F.pad(x, [pad for side in sides for pad in side], value=value)


def _gather(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, axis = _tensor(inputs[0]), attribute(node, "axis", 0)
    indices = _tensor(inputs[1]).to(x.device, torch.int64)
    axis, side = axis % x.ndim, x.shape[axis]
    chosen = x.index_select(axis, (indices % side).reshape(-1))
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _layer_norm(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, scale, *bias = inputs
    axis = attribute(node, "axis", -1) % x.ndim
    shift = _like(bias[0], x) if bias and bias[0] is not None else None
    epsilon = attribute(node, "epsilon", 1e-5)
    return F.layer_norm(x, x.shape[axis:], _like(scale, x), shift, epsilon)


def _batch_norm(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    x, scale, shift, mean, variance = (_like(each, inputs[0]) for each in inputs)
    epsilon = attribute(node, "epsilon", 1e-5)
    return F.batch_norm(x, mean, variance, scale, shift, eps=epsilon)


def _mean(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    keep = bool(attribute(node, "keepdims", 1))
    return inputs[0].mean(_axes(inputs), keepdim=keep)


def _gelu(node: onnx.NodeProto, inputs: list[Any], graph: Graph) -> Tensor:
    return F.gelu(inputs[0], approximate=attribute(node, "approximate", b"none").decode())


def _like(value: Any, x: Tensor) -> Tensor:
    return _tensor(value).to(x.device)


def _binary(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, inputs, graph: compute(_tensor(inputs[0]), _tensor(inputs[1]))


def _unary(compute: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, inputs, graph: compute(inputs[0])


Operator = Callable[[onnx.NodeProto, list[Any], Graph], Any]

OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Relu": lambda node, inputs, graph: inputs[0].relu(),
    "Clip": _clip,
    "Sigmoid": lambda node, inputs, graph: inputs[0].sigmoid(),
    "HardSigmoid": lambda node, inputs, graph: (
        inputs[0] * attribute(node, "alpha", 0.2) + attribute(node, "beta", 0.5)
    ).clamp(0, 1),
    "HardSwish": lambda node, inputs, graph: F.hardswish(inputs[0]),
    "Add": lambda node, inputs, graph: _tensor(inputs[0]) + _tensor(inputs[1]),
    "Mul": lambda node, inputs, graph: _tensor(inputs[0]) * _tensor(inputs[1]),
    "Concat": lambda node, inputs, graph: torch.cat(inputs, attribute(node, "axis")),
    "Split": _split,
    "Slice": _slice,
    "Reshape": _reshape,
    "Transpose": lambda node, inputs, graph: inputs[0].permute(attribute(node, "perm")),
    "Flatten": lambda node, inputs, graph: inputs[0].flatten(attribute(node, "axis", 1)),
    "Squeeze": lambda node, inputs, graph: inputs[0].squeeze(_axes(inputs)),
    "Unsqueeze": lambda node, inputs, graph: inputs[0].unsqueeze(_axes(inputs)[0]),
    "Resize": _resize,
    "GlobalAveragePool": lambda node, inputs, graph: inputs[0].mean((2, 3), keepdim=True),
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Gather": _gather,
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "ReduceMean": _mean,
    "Gelu": _gelu,
    "Softmax": lambda node, inputs, graph: inputs[0].softmax(attribute(node, "axis", -1)),
    "LeakyRelu": lambda node, inputs, graph: F.leaky_relu(
        inputs[0], attribute(node, "alpha", 0.01)
    ),
    "Elu": lambda node, inputs, graph: F.elu(inputs[0], attribute(node, "alpha", 1.0)),
    "MatMul": _binary(torch.matmul),
    "Sub": _binary(torch.sub),
    "Div": _binary(torch.div),
    "Pow": _binary(torch.pow),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Sqrt": _unary(torch.sqrt),
    "Tanh": _unary(torch.tanh),
}
