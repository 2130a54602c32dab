"""A tape as an ONNX graph in which the images of a batch lie side by side, as one wide image.

Small maps are slow because a convolution runs image by image: on a 1x1 map each of its products has
one column. Here a tensor (N, C, H, W) is stored as (1, C, H, W N), the batch innermost, so that every
product is as wide as the batch. What is 1 apart becomes N apart: a convolution's dilation and padding
along the width are multiplied by N. All other shapes (N, a, b, ...) are stored as (a, b, ..., N), and
(N, F) as (1, F, 1, N), so that a linear layer is a convolution too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from secateur.onnx_graph import IR_VERSION
from secateur.tape import Call, Tape, Unsupported, Value, Weight

OPSET = 20  # the first with Gelu
Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]

_UNARY: dict[str, str] = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "hardswish": "HardSwish",
    "gelu": "Gelu",
}
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}
_SAME = ("clone", "alias", "detach", "lift_fresh", "contiguous", "dropout")
_CHANNELWISE = {*_UNARY, "silu", "hardsigmoid", "hardtanh", "leaky_relu"}
_LANES = 16  # channels that a vector unit takes at a time, at most


def stored(shape: Sequence[int]) -> Shape:
    """The shape in which a tensor of ``shape``, the batch first, is stored."""
    batch, *rest = shape
    if len(rest) == 3:
        return 1, rest[0], rest[1], rest[2] * batch
    return (1, *rest, 1, batch) if len(rest) == 1 else (*rest, batch)


def tensor_name(value: Value) -> str:
    """What a value is called in the graph."""
    return f"value_{value.number}"


class BatchLast:
    """A tape, ready to be turned into graphs, whole or in parts.

    Batch-norms are folded into the convolutions before them, taps of a kernel that touch nothing but
    padding are left out, and channels between convolutions are filled up with zeros to a width that
    vector units like.

    Args:
        tape: Of a batch of N.
        weights: Parameters and buffers by name, float32.
    """

    def __init__(self, tape: Tape, weights: Mapping[str, Array]) -> None:
        self.tape, self.weights = tape, weights
        self.batch = tape.image.shape[0]
        self._readers: dict[Value, list[Call]] = {}
        for call in tape.calls:
            for value in call.inputs:
                self._readers.setdefault(value, []).append(call)
        self.norm_of = self._norms()
        self._folded = {id(norm) for norm in self.norm_of.values()}
        self.extra = self._fill()

    def graph(
        self,
        calls: Iterable[Call],
        inputs: Iterable[Value],
        outputs: Iterable[Value],
        masked: Iterable[Call] = (),
        weight_inputs: Iterable[str] = (),
    ) -> onnx.ModelProto:
        """A graph of some of the tape's calls.

        Args:
            calls: In the tape's order.
            inputs: What they read and none of them gives.
            outputs: What to give.
            masked: Layers whose input is multiplied by one more input of the graph, ``mask_NAME``
                of shape (1, C, 1, 1), where NAME is their weight's.
            weight_inputs: Weights of layers that are inputs of the graph, ``weight_NAME``.

        Raises:
            Unsupported: A call has no counterpart.
        """
        writer = _Writer(self, {id(call) for call in masked}, set(weight_inputs))
        for call in calls:
            if id(call) not in self._folded:
                writer.write(call)
        given = [(tensor_name(value), self.shape(value)) for value in inputs]
        return writer.model([*given, *writer.inputs], [tensor_name(value) for value in outputs])

    def shape(self, value: Value) -> Shape:
        """The shape in which ``value`` is stored."""
        shape = stored(value.shape)
        extra = self.extra.get(value, 0)
        return (1, shape[1] + extra, *shape[2:]) if extra else shape

    def store(self, images: Array) -> Array:
        """Images (n, C, H, W), n at most N, as the graph reads them; zeros fill up the batch."""
        wide = np.zeros((*images.shape[1:], self.batch), np.float32)
        wide[..., : len(images)] = images.transpose(1, 2, 3, 0)
        return wide.reshape(self.shape(self.tape.image))

    def _norms(self) -> dict[int, Call]:
        """Convolutions, by id, with the batch-norm that alone reads them."""
        found = {}
        for call in self.tape.calls:
            if call.op == "convolution":
                readers = self._readers.get(call.outputs[0], [])
                if len(readers) == 1 and readers[0].op == "native_batch_norm":
                    found[id(call)] = readers[0]
        return found

    def _fill(self) -> dict[Value, int]:
        """Channels to add to values that only convolutions and channel-wise functions touch."""
        extra: dict[Value, int] = {}
        for call in reversed(self.tape.calls):
            output = call.outputs[0]
            if call.op in ("convolution", "native_batch_norm", *_CHANNELWISE, *_SAME):
                fills = all(self._takes_filled(r, extra) for r in self._readers.get(output, []))
                if output != self.tape.logits and len(output.shape) == 4 and fills:
                    channels = output.shape[1]
                    extra[output] = -channels % _LANES
        # A depthwise convolution cannot make channels of its own: what it reads must be filled too.
        for call in self.tape.calls:
            if call.op != "convolution" or _depthwise(call):
                for value in call.outputs[:1]:
                    if value in extra and not all(v in extra for v in call.inputs[:1]):
                        del extra[value]
        return {value: count for value, count in extra.items() if count}

    def _takes_filled(self, reader: Call, extra: Mapping[Value, int]) -> bool:
        if reader.op == "convolution" and reader.args[8] == 1 and not reader.args[6]:
            return isinstance(reader.args[1], Weight)
        same_width = reader.op in ("native_batch_norm", *_CHANNELWISE, *_SAME) or (
            reader.op == "convolution" and _depthwise(reader)
        )
        return same_width and reader.outputs[0] in extra


def _depthwise(call: Call) -> bool:
    groups = call.args[8]
    return groups > 1 and groups == call.args[0].shape[1] == call.outputs[0].shape[1]


class _Writer:
    """Writes one graph."""

    def __init__(self, source: BatchLast, masked: set[int], weight_inputs: set[str]) -> None:
        self._source, self._batch = source, source.batch
        self._masked, self._weight_inputs = masked, weight_inputs
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._count = 0
        self.inputs: list[tuple[str, Shape]] = []

    def write(self, call: Call) -> None:
        """Add one call."""
        for value in (*call.inputs, *call.outputs[:1]):
            if value.shape[:1] != (self._batch,):
                raise Unsupported(f"{call.op} does not keep the images of a batch apart")
        if call.op in _SAME:
            self._node("Identity", [self._in(call)], call)
        elif call.op in _UNARY:
            self._node(_UNARY[call.op], [self._in(call)], call)
        elif call.op in _RULES:
            _RULES[call.op](self, call)
        else:
            raise Unsupported(f"no counterpart of aten::{call.op}")

    def model(self, inputs: list[tuple[str, Shape]], outputs: list[str]) -> onnx.ModelProto:
        """What was written, as a model."""
        said = [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs]
        gives = [helper.make_tensor_value_info(name, 1, None) for name in outputs]
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, "part", said, gives, constants)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)

    # ---- bookkeeping

    def _in(self, call: Call, index: int = 0) -> str:
        value = call.args[index]
        if not isinstance(value, Value):
            raise Unsupported(f"aten::{call.op} of what is not computed from the images")
        return tensor_name(value)

    def _new(self) -> str:
        self._count += 1
        return f"between_{self._count}"

    def _node(
        self, op: str, inputs: list[str], output: Call | str | None = None, **said: Any
    ) -> str:
        name = output if isinstance(output, str) else self._new()
        if isinstance(output, Call):
            name = tensor_name(output.outputs[0])
        self._nodes.append(helper.make_node(op, inputs, [name], **said))
        return name

    def _constant(self, value: npt.ArrayLike, name: str | None = None) -> str:
        name = name or self._new()
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _reshape(self, name: str, shape: Sequence[int], output: Call | str | None = None) -> str:
        return self._node("Reshape", [name, self._constant(np.array(shape, np.int64))], output)

    def _apart(self, value: Value) -> str:
        """``value`` with every dimension its own: (a, b, ..., N)."""
        return self._reshape(tensor_name(value), (*value.shape[1:], self._batch))

    def _slice(self, name: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        bounds = [self._constant(np.array([n], np.int64)) for n in (start, stop, axis, step)]
        return self._node("Slice", [name, *bounds])

    # ---- layers

    def convolution(self, call: Call) -> None:
        _, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
        value = call.args[0]
        if transposed or len(value.shape) != 4 or not isinstance(weight, Weight):
            raise Unsupported("a convolution that is transposed, not over pixels, or computed")
        kernel = self._source.weights[weight.name]
        shift = None if bias is None else self._source.weights[bias.name]
        norm, output = self._source.norm_of.get(id(call)), call.outputs[0]
        if norm is not None:
            kernel, shift, output = self._fold(kernel, shift, norm), *self._shift(shift, norm)
        name = self._mask(call, weight.name)
        spans = [
            _Span.of(value.shape[2 + i], output.shape[2 + i], kernel.shape[2 + i], s, p, d)
            for i, (s, p, d) in enumerate(zip(stride, padding, dilation, strict=True))
        ]
        kernel = kernel[:, :, spans[0].taps][:, :, :, spans[1].taps]
        kernel, shift = self._filled(kernel, shift, value, output, groups)
        groups = kernel.shape[0] if _depthwise(call) else groups
        inputs = [name, self._constant(kernel, weight.name)]
        if shift is not None:
            inputs.append(self._constant(shift))
        self._convolve(inputs, tensor_name(output), spans, len(kernel), groups)

    def _fold(self, kernel: Array, shift: Array | None, norm: Call) -> Array:
        scale, _ = self._norm(norm)
        return (kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.float32)

    def _shift(self, shift: Array | None, norm: Call) -> tuple[Array, Value]:
        scale, offset = self._norm(norm)
        return (offset + scale * (0 if shift is None else shift)).astype(np.float32), norm.outputs[
            0
        ]

    def _norm(self, call: Call) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        _, gamma, beta, mean, variance, training, _, epsilon = call.args
        if training or mean is None:
            raise Unsupported("a batch-norm without running statistics")
        take = self._source.weights
        center = take[mean.name].astype(np.float64)
        scale = 1 / np.sqrt(take[variance.name].astype(np.float64) + epsilon)
        if gamma is not None:
            scale = scale * take[gamma.name]
        offset = -center * scale
        return scale, offset if beta is None else offset + take[beta.name]

    def _filled(
        self, kernel: Array, shift: Array | None, value: Value, output: Value, groups: int
    ) -> tuple[Array, Array | None]:
        outputs, inputs = self._source.extra.get(output, 0), self._source.extra.get(value, 0)
        inputs = inputs if groups == 1 else 0
        kernel = np.pad(kernel, ((0, outputs), (0, inputs), (0, 0), (0, 0)))
        return kernel, shift if shift is None else np.pad(shift, (0, outputs))

    def _mask(self, call: Call, weight: str) -> str:
        value = next(iter(call.inputs))
        if id(call) not in self._masked:
            return tensor_name(value)
        mask = (f"mask_{weight}", (1, self._source.shape(value)[1], 1, 1))
        if mask not in self.inputs:
            self.inputs.append(mask)
        return self._node("Mul", [tensor_name(value), mask[0]])

    def _convolve(
        self, inputs: list[str], output: str, spans: Sequence[_Span], channels: int, groups: int
    ) -> None:
        """A convolution; ``spans`` over height and width. A stride along the width is taken after."""
        high, wide = spans
        n = self._batch
        if wide.crop:
            inputs = [self._slice(inputs[0], 3, 0, wide.size * n), *inputs[1:]]
        skips = wide.stride > 1 and wide.out > 1
        name = self._node(
            "Conv",
            inputs,
            self._new() if skips else output,
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
            self._reshape(name, (1, channels, high.out, wide.out * n), output)

    def linear(self, call: Call) -> None:
        bias, value, weight = call.args[:3] if call.op == "addmm" else (None, *call.args[:2])
        plain = call.op == "mm" or call.args[3:] == (1, 1)
        if not (isinstance(weight, Weight) and weight.transposed and plain):
            raise Unsupported("a product that is not a linear layer")
        name = self._mask(call, weight.name)
        if weight.name in self._weight_inputs:
            kernel = f"weight_{weight.name}"
            self.inputs.append((kernel, (*weight.shape, 1, 1)))
        else:
            kernel = self._constant(self._source.weights[weight.name][..., None, None], weight.name)
        shift = [] if bias is None else [self._constant(self._source.weights[bias.name], bias.name)]
        self._node("Conv", [name, kernel, *shift], call)

    def batch_norm(self, call: Call) -> None:
        scale, offset = (each.astype(np.float32) for each in self._norm(call))
        zeros, ones = np.zeros_like(scale), np.ones_like(scale)
        extra = self._source.extra.get(call.outputs[0], 0)
        constants = [
            self._constant(np.pad(each, (0, extra))) for each in (scale, offset, zeros, ones)
        ]
        self._node("BatchNormalization", [self._in(call), *constants], call, epsilon=0.0)

    # ---- pixels

    def pool(self, call: Call) -> None:
        """The largest, or the mean, of the pixels in each window: of its rows, then its columns."""
        largest = call.op == "max_pool2d_with_indices"
        value, kernel, stride, padding, *rest = call.args
        output = call.outputs[0]
        dilation = rest[0] if largest else 1
        counts_padding, divisor = (True, None) if largest else rest[1:]
        spans = [
            _Span.of(value.shape[2 + i], output.shape[2 + i], _at(kernel, i),
                     _at(stride or kernel, i), _at(padding, i), _at(dilation, i), trim=False)
            for i in range(2)
        ]  # fmt: skip
        pads = [span.before for span in spans] + [max(0, span.after) for span in spans]
        over = any(span.after > span.before for span in spans)
        if not largest and (divisor is not None or over or (any(pads) and not counts_padding)):
            raise Unsupported("an average over windows of different size")
        name = self._apart(value)
        if any(pads):
            around = [0, pads[0], pads[1], 0, 0, pads[2], pads[3], 0]
            fill = self._constant(np.float32(-np.inf if largest else 0))
            name = self._node("Pad", [name, self._constant(np.array(around, np.int64)), fill])
        for axis, span in enumerate(spans, start=1):
            reach = (span.out - 1) * span.stride + 1
            starts = [tap * span.dilation for tap in range(span.kernel)]
            taps = [self._slice(name, axis, s, s + reach, span.stride) for s in starts]
            name = self._node("Max" if largest else "Mean", taps)
        self._reshape(name, stored(output.shape), call)

    def mean(self, call: Call) -> None:
        value, dims = call.args[0], call.args[1]
        self._mean(call, value, dims)

    def _mean(self, call: Call, value: Value, dims: Sequence[int] | None) -> None:
        rank = len(value.shape)
        axes = sorted(d % rank for d in (dims or range(rank)))
        if 0 in axes:
            raise Unsupported("a mean over images")
        name = tensor_name(value)
        if math.prod(value.shape[axis] for axis in axes) > 1:
            if rank == 4 and axes == [2, 3]:  # one dimension is reduced faster than two
                shape = (1, value.shape[1], value.shape[2] * value.shape[3], self._batch)
                name, axes = self._reshape(name, shape), [3]
            else:
                name = self._apart(value)
            which = self._constant(np.array([axis - 1 for axis in axes], np.int64))
            name = self._node("ReduceMean", [name, which], keepdims=1)
        self._reshape(name, stored(call.outputs[0].shape), call)

    def adaptive_average(self, call: Call) -> None:
        value, output = call.args[0], call.outputs[0]
        if value.shape == output.shape:
            self._node("Identity", [self._in(call)], call)
        elif output.shape[2:] == (1, 1):
            self._mean(call, value, [2, 3])
        else:
            raise Unsupported("an adaptive pooling to more than one pixel")

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
        """Where dimension ``dim`` is stored, and how many numbers one of its entries takes there."""
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


class _Span:
    """A window that moves along one dimension, without the taps that only ever see padding."""

    def __init__(self, out: int, stride: int, dilation: int, taps: list[int], before: int) -> None:
        self.out, self.stride, self.dilation, self.taps = out, stride, dilation, taps
        self.before = before
        self.kernel = len(taps)
        self.after = self.size = self.crop = 0

    @classmethod
    def of(
        cls,
        size: int,
        out: int,
        kernel: int,
        stride: int,
        pad: int,
        dilation: int,
        trim: bool = True,
    ) -> _Span:
        seen = [
            tap for tap in range(kernel)
            if any(0 <= o * stride - pad + tap * dilation < size for o in range(out))
        ]  # fmt: skip
        taps = list(range(seen[0], seen[-1] + 1)) if trim else list(range(kernel))
        span = cls(out, stride, dilation, taps, pad - taps[0] * dilation)
        reach = (out - 1) * stride + (span.kernel - 1) * dilation + 1
        span.after = max(0, reach - span.before - size)
        span.crop = max(0, span.before + size - reach)
        span.size = size - span.crop
        return span


def _at(value: Sequence[int] | int, index: int) -> int:
    values = [value] if isinstance(value, int) else list(value)
    return values[index] if len(values) > 1 else values[0]


_RULES: dict[str, Callable[[_Writer, Call], None]] = {
    "convolution": _Writer.convolution,
    "addmm": _Writer.linear,
    "mm": _Writer.linear,
    "native_batch_norm": _Writer.batch_norm,
    "max_pool2d_with_indices": _Writer.pool,
    "avg_pool2d": _Writer.pool,
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
} | dict.fromkeys(_BINARY, _Writer.binary)
