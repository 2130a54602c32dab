"""The images of a batch side by side, as one wide image.

A convolution runs image by image, so on a 1x1 map each of its products has one column. Here a
tensor (N, C, H, W) is stored as (1, C, H, W N), the batch innermost: every product is as wide as
the batch, and what was 1 pixel apart along the width is N apart. Tensors of other shapes
(N, a, b, ...) are stored as (a, b, ..., N), and (N, F) as (1, F, 1, N): a linear layer is a
convolution too.
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
"""Operations on each channel by itself."""

_LANES = 16  # channels that a vector unit takes at a time, at most


def stored(shape: Sequence[int]) -> Shape:
    """The shape in which a tensor of ``shape``, the batch first, is stored."""
    batch, *rest = shape
    if len(rest) == 3:
        return 1, rest[0], rest[1], rest[2] * batch
    return (1, *rest, 1, batch) if len(rest) == 1 else (*rest, batch)


def tensor_name(value: Value) -> str:
    """What a value is called in a graph."""
    return f"value_{value.number}"


class Layout:
    """How the values of a tape are stored.

    Attributes:
        tape: Of a batch of N.
        batch: N.
        norm_of: For convolutions, by ``id``, the batch-norm that alone reads them: they become one.
        extra: Channels added to values that only convolutions and channel-wise operations touch.
            Where they are not a multiple of 4, ONNX Runtime takes up to three times as long.
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
        """The shape in which ``value`` is stored."""
        shape = stored(value.shape)
        return (1, shape[1] + self.extra[value], *shape[2:]) if value in self.extra else shape

    def store(self, images: Array) -> Array:
        """Store images (n, C, H, W), n at most N; zeros fill up the batch."""
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
        # What makes no channels of its own has more only if what it reads has.
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
    """Whether a call can read more channels than there are, those of ``extra``."""
    if reader.op == "convolution" and not depthwise(reader):
        *_, transposed, _, groups = reader.args
        return groups == 1 and not transposed and isinstance(reader.args[1], Weight)
    passes_on = reader.op == "convolution" or reader.op in CHANNELWISE
    return passes_on and reader.outputs[0] in extra


@dataclass(frozen=True)
class Span:
    """A window that moves along one dimension.

    Attributes:
        out: Places it comes to.
        stride: From one to the next.
        dilation: From one tap to the next.
        taps: Those of the kernel that are there.
        before: Padding at the start.
        after: Padding at the end, just as much as the last place needs.
        size: Pixels that are read; more at the end are not.
        crop: How many those are.
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
        """How many taps it has."""
        return self.taps.stop - self.taps.start

    @classmethod
    def of(
        cls, call: Call, dim: int, kernel: int, stride: int, padding: int, dilation: int
    ) -> Span:
        """The window of ``call`` along ``dim``, without taps that see nothing but padding."""
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
