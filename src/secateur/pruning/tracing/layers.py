"""Rules of layers with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from secateur.pruning.tracing.channel_graph import INPUTS, Axis, Nodes, known
from secateur.pruning.tracing.elementwise import distinct, meet, mixed
from secateur.pruning.tracing.labels import PLAIN, Ledger, Traits, Value, Weight, thin
from secateur.pruning.tracing.rules import (
    argument,
    fixed,
    keep,
    name_of,
    note_numbers,
    rule,
    spread,
    tensors_in,
    varying,
    vector,
)


def _channels(ledger: Ledger, tensor: Tensor, dimension: int) -> Nodes:
    """Labels along the dimension of channels; joins channels that share a position."""
    labels = ledger.labels(tensor)
    dimension %= labels.ndim
    channels = vector(labels, dimension)
    if channels is None:
        (thinned,) = thin(labels)
        rows = thinned.movedim(dimension, 0).flatten(1)
        channels = np.array(np.broadcast_to(rows[:, 0].numpy(), labels.shape[dimension]))
        why = f"a layer at {ledger.where} reads them in one place with channels that must stay"
        ledger.graph.join(rows[:, :1].numpy(), rows.numpy(), why)
        ledger.graph.tell(ledger.where, "reads several in one place", thinned.numpy())
    return channels


def _computed(ledger: Ledger, func: Any, args: tuple[Any, ...], result: Any) -> None:
    """A layer whose weights are not a parameter: protect its input."""
    why = f"the weights of {ledger.where} are computed"
    for tensor in tensors_in(args):
        keep(ledger, tensor, why)
    ledger.graph.unfollowed[f"computed weights at {ledger.where}"] = None
    for tensor in tensors_in(result):
        ledger.label(tensor, fixed(tensor))


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    images, weights = args[:2]
    weight = ledger.value(weights)
    name = func._schema.name
    transposed = "transpose" in name or bool(argument(func, args, kwargs, "transposed"))
    groups = argument(func, args, kwargs, "groups")
    if _is_one_filter(weight, weights, groups):
        _filter_each(ledger, func, args, kwargs, result)
        return
    if not isinstance(weight, Weight) or None in weight.axes[:2]:
        _computed(ledger, func, args, result)
        return
    dimension = images.ndim - (weights.ndim - 1)
    inside, outside = (0, 1) if transposed else (1, 0)
    bias = argument(func, args, kwargs, "bias")
    for number in ("stride", "padding", "dilation", "output_padding"):
        note_numbers(ledger, number, argument(func, args, kwargs, number))
    beside = _channels_beside(ledger.labels(images), dimension)
    if beside and not transposed and _filters_points(func, args, kwargs, beside):
        _mix_positions(ledger, images, weights, outside, bias, result, dimension)
        return
    channels = _channels(ledger, images, dimension)
    # A depthwise convolution with one remaining channel is still depthwise.
    if groups == 1 and Axis(weight.name, INPUTS) not in ledger.wider:
        produced = ledger.nodes(weight, outside)
        _read(ledger, weight, inside, channels)
        _make(ledger, weight, outside, produced)
    elif weight.name in ledger.graph.within and not transposed:
        produced = _grouped_within(ledger, weight, channels, groups)
    else:
        produced = _grouped(ledger, weight, channels, groups, transposed)
    traits = _bias(ledger, bias, produced)
    ledger.label(result, spread(produced, dimension, result), traits)


def _filters_points(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dimensions: Sequence[int]
) -> bool:
    """Whether a convolution filters each position along ``dimensions`` on its own."""
    images, weights = args[:2]
    pixels = weights.ndim - 2
    stride, padding = (
        [each] * pixels if isinstance(each, str) else list(each) * (pixels // len(each))
        for each in (argument(func, args, kwargs, name) for name in ("stride", "padding"))
    )
    places = [d - images.ndim for d in dimensions]
    return all(
        d >= -pixels and weights.shape[d] == stride[d] == 1 and padding[d] in (0, "same", "valid")
        for d in places
    )


def _channels_beside(labels: Tensor, dimension: int) -> list[int]:
    """Other dimensions along which labels differ, if more do so than along ``dimension``."""
    others = [d for d in varying(labels) if d != dimension % labels.ndim]
    return others if any(distinct(labels, d) > distinct(labels, dimension) for d in others) else []


def _is_one_filter(weight: Value, weights: Tensor, groups: int) -> bool:
    """Whether the weight is one fixed filter expanded to all channels."""
    alike = weights.shape[0] == 1 or weights.stride(0) == 0
    each = weights.shape[0] == groups and weights.shape[1] == 1
    return isinstance(weight, Tensor) and alike and each and groups > 1 and not varying(weight)


def _filter_each(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """A fixed filter on every channel, as in blur pooling (Zhang 2019), without weights to cut."""
    images, weights = args[:2]
    dimension = images.ndim - (weights.ndim - 1)
    for number in ("stride", "padding", "dilation"):
        note_numbers(ledger, number, argument(func, args, kwargs, number))
    channels = _channels(ledger, images, dimension)
    bias = argument(func, args, kwargs, "bias")
    if bias is not None:
        _bias(ledger, bias, channels)
    zero = ledger.traits(images).zero and bias is None
    ledger.label(result, spread(channels, dimension, result), Traits(zero=zero))


def _read(ledger: Ledger, weight: Weight, dimension: int, channels: Nodes) -> None:
    axis = weight.axes[dimension]
    assert axis is not None
    nodes = ledger.nodes(weight, dimension)
    ledger.graph.readers[Axis(weight.name, axis)] = None
    ledger.graph.join(nodes, channels, f"{ledger.where} reads channels that must stay")
    ledger.graph.tell(ledger.where, "reads them", nodes)


def _make(ledger: Ledger, weight: Weight, dimension: int, produced: Nodes) -> None:
    axis = weight.axes[dimension]
    assert axis is not None
    ledger.graph.sources[Axis(weight.name, axis)] = None
    ledger.graph.tell(ledger.where, "makes them", produced)


def _grouped(
    ledger: Ledger, weight: Weight, channels: Nodes, groups: int, transposed: bool
) -> Nodes:
    """Join inputs and outputs of each group; depthwise has one channel per group."""
    inputs = ledger.graph.nodes(weight.name, INPUTS, len(channels))
    ledger.graph.blocks[Axis(weight.name, INPUTS)] = len(channels) // groups
    ledger.graph.join(inputs, channels, f"{ledger.where} reads channels that must stay")
    blocks = inputs.reshape(groups, -1)
    ledger.graph.join(blocks[:, :1], blocks, "")
    makers = ledger.nodes(weight, 0)
    _make(ledger, weight, 0, makers)
    produced = makers.reshape(groups, -1)
    ledger.graph.join(blocks[:, :1], produced, "")
    together = "filters each on its own" if blocks.shape[1] == 1 else "filters them in groups"
    ledger.graph.tell(ledger.where, together, inputs)
    if transposed:  # outputs of a group share one axis of the weight
        return np.repeat(produced[:, 0], weight.shape[1])
    return makers


def _grouped_within(ledger: Ledger, weight: Weight, channels: Nodes, groups: int) -> Nodes:
    """Each group loses the same of its inputs, and equally many of its outputs."""
    inputs = ledger.graph.nodes(weight.name, INPUTS, len(channels))
    ledger.graph.blocks[Axis(weight.name, INPUTS)] = len(channels) // groups
    ledger.graph.join(inputs, channels, f"{ledger.where} reads channels that must stay")
    _read(ledger, weight, 1, inputs.reshape(groups, -1))
    produced = ledger.nodes(weight, 0)
    _make(ledger, weight, 0, produced)
    ledger.graph.shrink_alike(list(produced.reshape(groups, -1)), f"the groups of {ledger.where}")
    return produced


def _bias(ledger: Ledger, bias: Any, produced: Nodes) -> Traits:
    """Join a bias to its channels; return traits of the layer's result."""
    if bias is None:
        return Traits(zero=True, linear=known(produced))
    nodes = ledger.labels(bias).numpy()
    if len(nodes) == len(produced):
        ledger.graph.join(nodes, produced, f"the bias of {ledger.where} must stay")
        if (nodes >= 0).all():
            ledger.graph.biases.append((produced, nodes))
            return Traits(zero=ledger.traits(bias).zero, linear=known(produced))
    return PLAIN


@rule("linear")
def _linear(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    _dense(ledger, func, args, result, 1, 0, argument(func, args, kwargs, "bias"))


@rule("addmm")
def _addmm(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    _dense(ledger, func, args[1:], result, 0, 1, args[0])


def _dense(
    ledger: Ledger,
    func: Any,
    args: tuple[Any, ...],
    result: Any,
    inside: int,
    outside: int,
    bias: Any,
) -> None:
    """``args[0]`` times the weight ``args[1]``, whose dimensions are ``inside`` and ``outside``."""
    weight = ledger.value(args[1])
    if not isinstance(weight, Weight) or None in weight.axes:
        _computed(ledger, func, args, result)
        return
    dense(ledger, args[0], args[1], (-1, inside, outside), bias, result, result.ndim - 1)


def dense(
    ledger: Ledger,
    images: Tensor,
    weights: Tensor,
    where: tuple[int, int, int],
    bias: Any,
    result: Tensor,
    outputs: int,
) -> None:
    """A linear layer.

    Args:
        ledger: Ledger of the run.
        images: Input.
        weights: A weight of two axes.
        where: Dimension of the channels in ``images``, and the input and output dimension of
            ``weights``.
        bias: Bias, or None.
        result: Output.
        outputs: Dimension of channels in ``result``.
    """
    weight = ledger.value(weights)
    assert isinstance(weight, Weight)
    dimension, inside, outside = where
    beside = _channels_beside(ledger.labels(images), dimension)
    if beside and outputs == dimension % images.ndim:
        _mix_positions(ledger, images, weights, outside, bias, result, outputs)
        return
    channels = _channels(ledger, images, dimension)
    produced = ledger.nodes(weight, outside)
    _read(ledger, weight, inside, channels)
    _make(ledger, weight, outside, produced)
    traits = _bias(ledger, bias, produced)
    ledger.label(result, spread(produced, outputs, result), traits)


def _mix_positions(
    ledger: Ledger,
    images: Tensor,
    weights: Tensor,
    outside: int,
    bias: Any,
    result: Tensor,
    dimension: int,
) -> None:
    """A layer over positions, as in MLP-Mixer: channels pass, and its own width is kept."""
    weight = ledger.value(weights)
    assert isinstance(weight, Weight)
    _make(ledger, weight, outside, ledger.nodes(weight, outside))
    for tensor in tensors_in((weights, bias)):
        keep(ledger, tensor, f"{ledger.where} mixes positions of channels")
    labels = mixed(ledger, ledger.labels(images), [dimension], f"{ledger.where}")
    labels = labels.narrow(dimension, 0, 1).expand(result.shape)
    zero = bias is None and ledger.traits(images).zero
    ledger.label(result, labels, Traits(zero=zero))


@rule("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
@rule("group_norm", "native_group_norm")
def _channel_norm(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Scale and shift each channel; a group norm also mixes the channels of a group."""
    name = name_of(func)
    channels = _channels(ledger, args[0], 1)
    note_numbers(ledger, "eps", argument(func, args, kwargs, "eps"))
    what = "normalizes each on its own"
    if "group" in name:
        groups = argument(func, args, kwargs, "num_groups" if name == "group_norm" else "group")
        what = _group(ledger, channels, groups, args[1:], kwargs)
    ledger.graph.tell(ledger.where, what, channels)
    for tensor in tensors_in(args[1:], kwargs):
        nodes = ledger.labels(tensor).numpy()
        if nodes.shape == channels.shape:
            ledger.graph.join(nodes, channels, f"{ledger.where} normalizes channels that must stay")
    first, *rest = tensors_in(result)
    ledger.label(
        first, spread(channels, 1, first), Traits(zero=_affine_zero(ledger, func, args, kwargs))
    )
    for tensor in rest:
        ledger.label(tensor, fixed(tensor))


def _affine_zero(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether masked scale and shift of a norm give zeros."""
    scale, shift = (argument(func, args, kwargs, name) for name in ("weight", "bias"))
    return scale is not None and all(ledger.traits(t).zero for t in (scale, shift) if t is not None)


def _group(ledger: Ledger, channels: Nodes, groups: int, *parameters: Any) -> str:
    """Channels that share statistics: with one group any can be removed, else entire groups."""
    values = (ledger.value(tensor) for tensor in tensors_in(*parameters))
    names = [value.name for value in values if isinstance(value, Weight)]
    if groups > 1:
        ledger.graph.grouped.update(names)
    elif names and not set(names) <= set(ledger.grouped):  # else a single group would be left
        return "normalizes them together"
    rows = channels.reshape(groups, -1)
    ledger.graph.join(rows[:, :1], rows, f"{ledger.where} mixes them with channels that must stay")
    return f"normalizes them in {groups} groups"


@rule("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Statistics over the last dimensions; over channels, they use the remaining ones."""
    images, sizes = args[:2]
    labels = ledger.labels(images)
    parameters = tensors_in(args[2:], kwargs)
    note_numbers(ledger, "eps", argument(func, args, kwargs, "eps"))
    first = tensors_in(result)[0]
    if len(sizes) == 1 and parameters and isinstance(ledger.value(parameters[0]), Weight):
        channels = _channels(ledger, images, -1)
        for tensor in parameters:
            nodes = ledger.labels(tensor).numpy()
            why = f"{ledger.where} normalizes channels that must stay"
            ledger.graph.join(nodes, channels, why)
        ledger.graph.tell(ledger.where, "normalizes them together", channels)
        zero = all(ledger.traits(tensor).zero for tensor in parameters)
        ledger.label(first, spread(channels, first.ndim - 1, first), Traits(zero=zero))
        return
    where = f"layer_norm at {ledger.where}"
    for tensor in parameters:
        labels = meet(ledger, [images, tensor], labels.shape, f"norm at {ledger.where}", "scales")
    dims = range(labels.ndim - len(sizes), labels.ndim)
    ledger.label(first, mixed(ledger, labels, dims, where))
