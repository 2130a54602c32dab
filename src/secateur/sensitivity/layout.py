"""Memory layout with the batch as innermost dimension.

A convolution processes images one by one, so that on a 1x1 map its matrix products have one column.
Here a tensor (N, C, H, W) is stored as (1, C, H, W N): every product has at least N columns, and
pixels that are 1 apart along the width are N apart. Tensors of other shapes (N, a, b, ...) are
stored as (a, b, ..., N), and (N, F) as (1, F, 1, N), which makes a linear layer a convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.sensitivity.tape import Call, Tape, Value, Weight

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]

CHANNELWISE = {
    *("relu", "sigmoid", "tanh", "hardswish", "gelu", "silu", "hardsigmoid", "hardtanh"),
    *("leaky_relu", "clone", "alias", "detach", "native_batch_norm"),
}
"""Operations on each channel separately."""

_LANES = 16  # largest number of channels of a vector unit


def stored(shape: Sequence[int]) -> Shape:
    """The stored shape of a tensor of ``shape`` with the batch first."""
    batch, *rest = shape
    if len(rest) == 3:
        return 1, rest[0], rest[1], rest[2] * batch
    return (1, *rest, 1, batch) if len(rest) == 1 else (*rest, batch)


def tensor_name(value: Value) -> str:
    """The name of a value in a graph."""
    return f"value_{value.number}"


class Layout:
    """Storage of the values of a tape.

    Attributes:
        tape: Tape of a batch of N.
        batch: Batch size N.
        norm_of: From ``id`` of a convolution to the batch-norm that is its only reader, to be
            folded.
        extra: Channels added to values used by convolutions and channel-wise operations only: ONNX
            Runtime takes up to three times as long for widths that are not multiples of 4.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape, self.batch = tape, tape.image.shape[0]
        self._readers: dict[Value, list[Call]] = {}
        for call in tape.calls:
            for value in call.inputs:
                self._readers.setdefault(value, []).append(call)
        self.norm_of = self._norms()
        self.extra = self._fill()

    def shape(self, value: Value) -> Shape:
        """The stored shape of ``value``."""
        shape = stored(value.shape)
        return (1, shape[1] + self.extra[value], *shape[2:]) if value in self.extra else shape

    def store(self, images: Array) -> Array:
        """Store images (n, C, H, W), n at most N, padded with zeros to N."""
        wide = np.zeros((*images.shape[1:], self.batch), np.float32)
        wide[..., : len(images)] = images.transpose(1, 2, 3, 0)
        return wide.reshape(self.shape(self.tape.image))

    def _norms(self) -> dict[int, Call]:
        norms = {}
        for call in self.tape.calls:
            if call.op == "convolution":
                readers = self._readers.get(call.outputs[0], [])
                if len(readers) == 1 and readers[0].op == "native_batch_norm":
                    norms[id(call)] = readers[0]
        return norms

    def _fill(self) -> dict[Value, int]:
        extra: dict[Value, int] = {}
        for call in reversed(self.tape.calls):
            output = call.outputs[0]
            if call.op == "convolution" or call.op in CHANNELWISE:
                readers = self._readers.get(output, [])
                if len(output.shape) == 4 and all(_takes_more(r, extra) for r in readers):
                    extra[output] = -output.shape[1] % _LANES
        # Operations that keep channels have extra ones only if their input has.
        for call in self.tape.calls:
            own = call.op == "convolution" and not depthwise(call)
            if not own and not all(value in extra for value in call.inputs):
                extra.pop(call.outputs[0], None)
        return {value: count for value, count in extra.items() if count}


def depthwise(call: Call) -> bool:
    """Whether a convolution has a kernel for each channel."""
    groups = call.args[8]
    return groups > 1 and groups == call.args[0].shape[1] == call.outputs[0].shape[1]


def _takes_more(reader: Call, extra: Mapping[Value, int]) -> bool:
    """Whether a call can read the extra channels of its input."""
    if reader.op == "convolution" and not depthwise(reader):
        *_, transposed, _, groups = reader.args
        return groups == 1 and not transposed and isinstance(reader.args[1], Weight)
    passes_on = reader.op == "convolution" or reader.op in CHANNELWISE
    return passes_on and reader.outputs[0] in extra


@dataclass(frozen=True)
class Span:
    """A sliding window along one dimension.

    Attributes:
        out: Number of positions.
        stride: Distance between positions.
        dilation: Distance between taps.
        taps: Used taps of the kernel.
        before: Padding at the start.
        after: Padding at the end, as needed by the last position.
        size: Number of pixels that are read.
        crop: Number of unread pixels at the end.
    """

    out: int
    stride: int
    dilation: int
    taps: slice
    before: int
    after: int
    size: int
    crop: int

    @property
    def kernel(self) -> int:
        """Number of taps."""
        return self.taps.stop - self.taps.start

    @classmethod
    def of(
        cls, call: Call, dim: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> Span:
        """The window of ``call`` along ``dim``, without taps that read padding only."""
        size, out = call.args[0].shape[dim], call.outputs[0].shape[dim]
        seen = [
            tap
            for tap in range(kernel)
            if any(0 <= o * stride - padding + tap * dilation < size for o in range(out))
        ]
        taps = slice(min(seen[0], padding // dilation), seen[-1] + 1)
        before = padding - taps.start * dilation
        reach = (out - 1) * stride + (taps.stop - taps.start - 1) * dilation + 1
        after, crop = max(0, reach - before - size), max(0, before + size - reach)
        return cls(out, stride, dilation, taps, before, after, size - crop, crop)
