"""Folds convolutions, batch-norms and residual adds into one convolution.

A convolution after a convolution is a convolution: kernel sizes add, strides multiply. A batch-norm
is a scale and a shift of each channel; an identity is a convolution with a kernel of one pixel. All
of it is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.pruning.merging.linear_segment import LinearSegment
from secateur.pruning.merging.links import Sides


@dataclass(frozen=True)
class Operator:
    """A convolution without padding, in float64.

    Attributes:
        weight: (groups, outputs, inputs, height, width), channels of one group.
        bias: (groups, outputs).
        stride: Height and width.
    """

    weight: Tensor
    bias: Tensor
    stride: Sides

    @classmethod
    def identity(cls, channels: int, groups: int) -> Operator:
        """The operator that returns its input."""
        width = channels // groups
        one = torch.eye(width, dtype=torch.float64).expand(groups, width, width)
        return cls(one[..., None, None], torch.zeros(groups, width, dtype=torch.float64), (1, 1))

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.Module, groups: int) -> Operator:
        """A convolution and its batch-norm in inference mode.

        Args:
            conv: Without padding; a dilated kernel becomes a dense one.
            norm: A batch-norm, or an identity.
            groups: A divisor of the convolution's groups.
        """
        weight = _dense(conv, groups)
        bias = torch.zeros(conv.out_channels, dtype=torch.float64)
        if conv.bias is not None:
            bias = _double(conv.bias)
        bias = bias.view(groups, -1)
        if isinstance(norm, nn.BatchNorm2d):
            scale, shift = (each.view(groups, -1) for each in _scale_and_shift(norm))
            weight, bias = weight * scale[..., None, None, None], bias * scale + shift
        height, width = conv.stride
        return cls(weight, bias, (height, width))

    def cropped(self, sides: Sides) -> Operator:
        """The operator without pixels at each side of its output."""
        height, width = (side * stride for side, stride in zip(sides, self.stride, strict=True))
        return replace(self, weight=F.pad(self.weight, (width, width, height, height)))

    def then(self, second: Operator) -> Operator:
        """The operator of both, ``second`` after this one."""
        groups, _, inputs, *kernel = self.weight.shape
        outputs, *taps = second.weight.shape[1], *second.weight.shape[3:]
        sides = [k + (t - 1) * s for k, t, s in zip(kernel, taps, self.stride, strict=True)]
        weight = torch.zeros(groups, outputs, inputs, *sides, dtype=torch.float64)
        first = self.weight.flatten(2)
        for row in range(taps[0]):
            for column in range(taps[1]):
                top, left = row * self.stride[0], column * self.stride[1]
                product = second.weight[..., row, column] @ first
                place = weight[..., top : top + kernel[0], left : left + kernel[1]]
                place += product.view(groups, outputs, inputs, *kernel)
        shift = second.weight.sum((3, 4)) @ self.bias[..., None]
        stride = self.stride[0] * second.stride[0], self.stride[1] * second.stride[1]
        return Operator(weight, second.bias + shift[..., 0], stride)

    def plus(self, other: Operator) -> Operator:
        """The sum of two operators of the same geometry."""
        assert self.stride == other.stride
        assert self.weight.shape == other.weight.shape
        return replace(self, weight=self.weight + other.weight, bias=self.bias + other.bias)


def fold(segment: LinearSegment) -> nn.Conv2d:
    """Return the convolution that computes the same as a segment in inference mode.

    Its groups are the largest number that divides those of all parts: a depthwise convolution
    with an ordinary one gives an ordinary one.

    Args:
        segment: Not modified.

    Returns:
        On the same device, in the same dtype; computed in float64 and rounded once.
    """
    convs = [conv for conv in segment.convs if isinstance(conv, nn.Conv2d)]
    groups = segment.groups
    values = [Operator.identity(convs[0].in_channels, groups)]
    for number, (conv, norm) in enumerate(zip(convs, segment.norms, strict=True)):
        value = values[number].cropped(segment.crops[number])
        value = value.then(Operator.of(conv, norm, groups))
        for (start, end, crop), parts in zip(segment.skips, segment.projections, strict=True):
            if end == number + 1:
                way = values[start].cropped(crop)
                if isinstance(parts, nn.ModuleList) and len(parts):
                    projection, projection_norm = parts
                    assert isinstance(projection, nn.Conv2d)
                    way = way.then(Operator.of(projection, projection_norm, groups))
                value = value.plus(way)
        values.append(value)
    return _convolution(values[-1], segment.margin, convs[0].weight)


def _convolution(operator: Operator, padding: Sides, like: Tensor) -> nn.Conv2d:
    groups, outputs, inputs, height, width = operator.weight.shape
    folded = nn.Conv2d(
        groups * inputs,
        groups * outputs,
        (height, width),
        operator.stride,
        padding,
        groups=groups,
        device=like.device,
        dtype=like.dtype,
    )
    assert folded.bias is not None
    with torch.no_grad():
        folded.weight.copy_(operator.weight.flatten(0, 1))
        folded.bias.copy_(operator.bias.flatten())
    return folded


def _dense(conv: nn.Conv2d, groups: int) -> Tensor:
    """Weight of a convolution in ``groups`` groups, with zeros in place of its own groups."""
    weight = _double(conv.weight)
    parts, (height, width) = conv.groups // groups, conv.kernel_size
    outputs, inputs = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    sides = [d * (k - 1) + 1 for d, k in zip(conv.dilation, (height, width), strict=True)]
    dense = torch.zeros(groups, parts, outputs, parts, inputs, *sides, dtype=torch.float64)
    own = torch.arange(parts)
    weight = weight.view(groups, parts, outputs, inputs, height, width)
    dilated = dense[..., :: conv.dilation[0], :: conv.dilation[1]]
    dilated[:, own, :, own] = weight.movedim(1, 0)
    return dense.view(groups, parts * outputs, parts * inputs, *sides)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = 1 / torch.sqrt(_double(norm.running_var) + norm.eps)
    if norm.affine:
        scale = scale * _double(norm.weight)
    shift = -_double(norm.running_mean) * scale
    return scale, shift + _double(norm.bias) if norm.affine else shift


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()
