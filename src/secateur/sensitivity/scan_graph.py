"""Writes part of a tape as an ONNX graph in the layout of :mod:`secateur.sensitivity.layout`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from secateur.sensitivity.layout import Array, Layout, Shape, Span, depthwise, stored, tensor_name
from secateur.sensitivity.operations import Nodes
from secateur.sensitivity.tape import Call, Unsupported, Value, Weight

_UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "hardswish": "HardSwish",
    "clone": "Identity",
    "alias": "Identity",
    "detach": "Identity",
}
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}


def write_graph(
    layout: Layout,
    weights: Mapping[str, Array],
    calls: Iterable[Call],
    outputs: Iterable[Value],
    masked: Iterable[Call] = (),
    open_weights: Iterable[str] = (),
) -> onnx.ModelProto:
    """Write some of a tape's calls as a graph of fixed batch size.

    Its inputs are the values that the calls need and do not compute, named by
    :func:`~secateur.sensitivity.layout.tensor_name`. Batch-norms are folded into convolutions, as
    in :mod:`secateur.onnx_ir.export`, and kernel taps that read padding only are removed.

    Args:
        layout: Layout of the tape.
        weights: Parameters and buffers by name, float32.
        calls: Calls in the tape's order.
        outputs: Values to return.
        masked: Layers whose input is multiplied by the graph input ``mask_NAME`` of shape (1,
            channels, 1, 1), with NAME of their weight.
        open_weights: Weights of linear layers that are inputs of the graph, ``weight_NAME``, of
            shape (outputs, inputs, 1, 1).

    Raises:
        Unsupported: A call cannot be written.
    """
    chosen = list(calls)
    folded = {id(norm) for norm in layout.norm_of.values()}
    writer = _Writer(layout, weights, {id(call) for call in masked}, set(open_weights))
    for call in chosen:
        if id(call) not in folded:
            writer.write(call)
    inputs = [(tensor_name(value), layout.shape(value)) for value in missing(chosen)]
    return writer.model([*inputs, *writer.inputs], [tensor_name(value) for value in outputs])


def missing(calls: Sequence[Call]) -> list[Value]:
    """Values that ``calls`` read but do not compute."""
    computed = {value for call in calls for value in call.outputs}
    return list(dict.fromkeys(v for call in calls for v in call.inputs if v not in computed))


class _Writer(Nodes):
    """Writes each operation in ONNX."""

    def __init__(
        self,
        layout: Layout,
        weights: Mapping[str, Array],
        masked: set[int],
        open_weights: set[str],
    ) -> None:
        super().__init__(layout.batch)
        self._layout, self._weights = layout, weights
        self._masked, self._open = masked, open_weights
        self.inputs: list[tuple[str, Shape]] = []

    def write(self, call: Call) -> None:
        """Add one call."""
        for value in (*call.inputs, *call.outputs[:1]):
            if value.shape[:1] != (self._batch,):
                raise Unsupported(f"aten::{call.op} does not keep the images of a batch apart")
        if call.op in _UNARY:
            self._node(_UNARY[call.op], [self._in(call)], call)
        elif call.op in _RULES:
            _RULES[call.op](self, call)
        else:
            raise Unsupported(f"no counterpart of aten::{call.op}")

    # ---- layers

    def convolution(self, call: Call) -> None:
        value, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
        if transposed or len(value.shape) != 4 or not isinstance(weight, Weight):
            raise Unsupported("a convolution that is transposed, not over pixels, or computed")
        kernel, output = self._weights[weight.name], call.outputs[0]
        shift = None if bias is None else self._weights[bias.name]
        norm = self._layout.norm_of.get(id(call))
        if norm is not None:
            scale, offset = self._norm(norm)
            kernel = (kernel * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
            shift = (offset + scale * (0 if shift is None else shift)).astype(np.float32)
            output = norm.outputs[0]
        spans = [
            Span.of(call, 2 + i, kernel.shape[2 + i], stride[i], padding[i], dilation[i])
            for i in range(2)
        ]
        kernel = kernel[:, :, spans[0].taps, spans[1].taps]
        more = self._layout.extra.get(output, 0)
        also = self._layout.extra.get(value, 0) if groups == 1 else 0
        kernel = np.pad(kernel, ((0, more), (0, also), (0, 0), (0, 0)))
        inputs = [self._mask(call, weight.name), self._constant(kernel)]
        if shift is not None:
            inputs.append(self._constant(np.pad(shift, (0, more))))
        self._convolve(
            inputs, output, spans, len(kernel), len(kernel) if depthwise(call) else groups
        )

    def _norm(self, call: Call) -> tuple[np.ndarray, np.ndarray]:
        _, gamma, beta, mean, variance, training, _, epsilon = call.args
        if training or mean is None:
            raise Unsupported("a batch-norm without running statistics")
        take = self._weights
        center = take[mean.name].astype(np.float64)
        scale = 1 / np.sqrt(take[variance.name].astype(np.float64) + epsilon)
        if gamma is not None:
            scale = scale * take[gamma.name]
        offset = -center * scale
        return scale, offset if beta is None else offset + take[beta.name]

    def _mask(self, call: Call, weight: str) -> str:
        value = call.inputs[0]
        if id(call) not in self._masked:
            return tensor_name(value)
        mask = self._input(f"mask_{weight}", (1, self._layout.shape(value)[1], 1, 1))
        return self._node("Mul", [tensor_name(value), mask])

    def _input(self, name: str, shape: Shape) -> str:
        if (name, shape) not in self.inputs:  # a layer may be called several times
            self.inputs.append((name, shape))
        return name

    def _convolve(
        self, inputs: list[str], output: Value, spans: Sequence[Span], channels: int, groups: int
    ) -> None:
        """Apply a stride along the width afterwards: there, images are between the pixels."""
        high, wide = spans
        n = self._batch
        if wide.crop:
            inputs = [self._slice(inputs[0], 3, 0, wide.size * n), *inputs[1:]]
        skips = wide.stride > 1 and wide.out > 1
        name = self._node(
            "Conv",
            inputs,
            self._new() if skips else tensor_name(output),
            kernel_shape=[high.kernel, wide.kernel],
            strides=[high.stride, 1],
            pads=[high.before, wide.before * n, high.after, wide.after * n],
            dilations=[high.dilation, wide.dilation * n],
            group=groups,
        )
        if skips:
            full = (wide.out - 1) * wide.stride + 1
            name = self._reshape(name, (channels, high.out, full, n))
            name = self._slice(name, 2, 0, full, wide.stride)
            self._reshape(name, (1, channels, high.out, wide.out * n), tensor_name(output))

    def linear(self, call: Call) -> None:
        bias, _, weight = call.args[:3] if call.op == "addmm" else (None, *call.args[:2])
        plain = call.op == "mm" or call.args[3:] == (1, 1)
        if not (isinstance(weight, Weight) and weight.transposed and plain):
            raise Unsupported("a product that is not a linear layer")
        name = self._mask(call, weight.name)
        if weight.name in self._open:
            kernel = self._input(f"weight_{weight.name}", (*weight.shape, 1, 1))
        else:
            kernel = self._constant(self._weights[weight.name][..., None, None])
        shift = [] if bias is None else [self._constant(self._weights[bias.name])]
        self._node("Conv", [name, kernel, *shift], call)

    def batch_norm(self, call: Call) -> None:
        scale, offset = (each.astype(np.float32) for each in self._norm(call))
        zeros, ones = np.zeros_like(scale), np.ones_like(scale)
        extra = self._layout.extra.get(call.outputs[0], 0)
        constants = [
            self._constant(np.pad(each, (0, extra))) for each in (scale, offset, zeros, ones)
        ]
        self._node("BatchNormalization", [self._in(call), *constants], call, epsilon=0.0)

    # ---- pixels

    def max_pool(self, call: Call) -> None:
        kernel, stride, padding, dilation = (_both(each) for each in call.args[1:5])
        stride = stride or kernel
        self._pool("Max", call, [
            Span.of(call, 2 + i, kernel[i], stride[i], padding[i], dilation[i]) for i in range(2)
        ])  # fmt: skip

    def average_pool(self, call: Call) -> None:
        kernel, stride, padding = (_both(each) for each in call.args[1:4])
        stride = stride or kernel
        spans = [Span.of(call, 2 + i, kernel[i], stride[i], padding[i], 1) for i in range(2)]
        if any(padding) or any(span.after for span in spans) or call.args[6] is not None:
            raise Unsupported("an average over windows of different size")
        self._pool("Mean", call, spans)

    def _pool(self, op: str, call: Call, spans: Sequence[Span]) -> None:
        """Pool rows of each window, then columns."""
        name = self._apart(call.args[0])
        pads = [span.before for span in spans] + [span.after for span in spans]
        if any(pads):
            around = np.array([0, *pads[:2], 0, 0, *pads[2:], 0], np.int64)
            least = self._constant(np.float32(-np.inf))
            name = self._node("Pad", [name, self._constant(around), least])
        for axis, span in enumerate(spans, start=1):
            reach = (span.out - 1) * span.stride + 1
            starts = [tap * span.dilation for tap in range(span.kernel)]
            taps = [self._slice(name, axis, s, s + reach, span.stride) for s in starts]
            name = self._node(op, taps)
        self._reshape(name, stored(call.outputs[0].shape), call)

    def mean(self, call: Call) -> None:
        self._mean(call, call.args[0], call.args[1])

    def _mean(self, call: Call, value: Value, dims: Sequence[int] | None) -> None:
        rank = len(value.shape)
        axes = sorted(d % rank for d in (dims or range(rank)))
        if 0 in axes:
            raise Unsupported("a mean over images")
        name = tensor_name(value)
        if math.prod(value.shape[axis] for axis in axes) > 1:
            if rank == 4 and axes == [2, 3]:  # reducing one dimension is faster than two
                shape = (1, value.shape[1], value.shape[2] * value.shape[3], self._batch)
                name, axes = self._reshape(name, shape), [3]
            else:
                name = self._apart(value)
            which = self._constant(np.array([axis - 1 for axis in axes], np.int64))
            name = self._node("ReduceMean", [name, which], keepdims=1)
        self._reshape(name, stored(call.outputs[0].shape), call)

    def adaptive_average(self, call: Call) -> None:
        value, output = call.args[0], call.outputs[0]
        if output.shape[2:] == (1, 1):
            self._mean(call, value, [2, 3])
            return
        name = self._apart(value)
        for axis in (1, 2):
            size, out = value.shape[axis + 1], output.shape[axis + 1]
            if size % out == 0:
                step = size // out
                name = self._node(
                    "Mean", [self._slice(name, axis, s, size, step) for s in range(step)]
                )
            elif out % size == 0:
                index = self._constant(np.arange(out) * size // out)
                name = self._node("Gather", [name, index], axis=axis)
            else:
                raise Unsupported("an adaptive pooling over windows of different size")
        self._reshape(name, stored(output.shape), call)

    # ---- movement

    def view(self, call: Call) -> None:
        self._reshape(self._in(call), stored(call.outputs[0].shape), call)

    def permute(self, call: Call) -> None:
        value = call.args[0]
        rank = len(value.shape)
        order = list(range(rank))
        if call.op == "transpose":
            first, second = (d % rank for d in call.args[1:])
            order[first], order[second] = second, first
        else:
            order = [d % rank for d in call.args[1]]
        moved = [d - 1 for d in order[1:]] + [rank - 1]
        name = self._node("Transpose", [self._apart(value)], perm=moved)
        self._reshape(name, stored(call.outputs[0].shape), call)

    def concatenate(self, call: Call) -> None:
        axis, _ = self._axis(call, call.args[1])
        self._node("Concat", [tensor_name(value) for value in call.inputs], call, axis=axis)

    def split(self, call: Call) -> None:
        axis, times = self._axis(call, call.args[2])
        dim = call.args[2] % len(call.args[0].shape)
        sizes = [value.shape[dim] * times for value in call.outputs]
        names = [tensor_name(value) for value in call.outputs]
        inputs = [self._in(call), self._constant(np.array(sizes, np.int64))]
        self._nodes.append(helper.make_node("Split", inputs, names, axis=axis))

    def _axis(self, call: Call, dim: int) -> tuple[int, int]:
        """The stored axis of dimension ``dim``, and the number of elements of one entry there."""
        shape = call.outputs[0].shape
        dim %= len(shape)
        if dim == 0:
            raise Unsupported(f"{call.op} along the batch")
        if len(shape) == 4:
            return dim, self._batch if dim == 3 else 1
        return (1, 1) if len(shape) == 2 else (dim - 1, 1)

    # ---- elements

    def binary(self, call: Call) -> None:
        first, second = call.args[:2]
        if len(call.args) > 2 and call.args[2] != 1:
            raise Unsupported(f"{call.op} with a factor")
        op = _BINARY[call.op]
        if not (isinstance(first, Value) and isinstance(second, (Value, int, float))):
            raise Unsupported(f"{call.op} of a weight")
        if not isinstance(second, Value):
            self._node(op, [self._in(call), self._constant(np.float32(second))], call)
        elif first.shape == second.shape:
            self._node(op, [self._in(call), self._in(call, 1)], call)
        elif len(first.shape) == len(second.shape):
            name = self._node(op, [self._apart(first), self._apart(second)])
            self._reshape(name, stored(call.outputs[0].shape), call)
        else:
            raise Unsupported(f"{call.op} of tensors of different rank")

    def clip(self, call: Call) -> None:
        bounds = [self._constant(np.float32(bound)) for bound in call.args[1:3]]
        self._node("Clip", [self._in(call), *bounds], call)

    def silu(self, call: Call) -> None:
        gate = self._node("Sigmoid", [self._in(call)])
        self._node("Mul", [self._in(call), gate], call)

    def hardsigmoid(self, call: Call) -> None:
        self._node("HardSigmoid", [self._in(call)], call, alpha=1 / 6, beta=0.5)

    def leaky_relu(self, call: Call) -> None:
        self._node("LeakyRelu", [self._in(call)], call, alpha=float(call.args[1]))

    def gelu(self, call: Call) -> None:
        self._node("Gelu", [self._in(call)], call, approximate=call.args[1])


def _both(value: Sequence[int] | int) -> list[int]:
    """A setting for height and width, which may be one number for both."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


_RULES: dict[str, Callable[[_Writer, Call], None]] = {
    "convolution": _Writer.convolution,
    "addmm": _Writer.linear,
    "mm": _Writer.linear,
    "native_batch_norm": _Writer.batch_norm,
    "max_pool2d_with_indices": _Writer.max_pool,
    "avg_pool2d": _Writer.average_pool,
    "mean": _Writer.mean,
    "_adaptive_avg_pool2d": _Writer.adaptive_average,
    "view": _Writer.view,
    "_unsafe_view": _Writer.view,
    "transpose": _Writer.permute,
    "permute": _Writer.permute,
    "cat": _Writer.concatenate,
    "split": _Writer.split,
    "split_with_sizes": _Writer.split,
    "hardtanh": _Writer.clip,
    "silu": _Writer.silu,
    "hardsigmoid": _Writer.hardsigmoid,
    "leaky_relu": _Writer.leaky_relu,
    "gelu": _Writer.gelu,
    **dict.fromkeys(_BINARY, _Writer.binary),
}
