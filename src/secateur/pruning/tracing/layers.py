"""Layers with weights: they read channels, and make, scale or mix others."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from secateur.pruning.tracing.channel_graph import INPUTS, Axis, Nodes
from secateur.pruning.tracing.labels import Ledger, Weight, thin
from secateur.pruning.tracing.rules import (
    argument,
    cannot_follow,
    fixed,
    keep,
    name_of,
    note_numbers,
    rule,
    spread,
    tensors_in,
    vector,
)


def _channels(ledger: Ledger, tensor: Tensor, dimension: int) -> Nodes:
    """Labels along the dimension of channels; those that share a place there become one."""
    labels = ledger.labels(tensor)
    dimension %= labels.ndim
    found = vector(labels, dimension)
    if found is None:
        (held,) = thin(labels)
        rows = held.movedim(dimension, 0).flatten(1)
        found = np.broadcast_to(rows[:, 0].numpy(), labels.shape[dimension])
        why = f"a layer at {ledger.where} reads them in one place with channels that must stay"
        ledger.wiring.join(rows[:, :1].numpy(), rows.numpy(), why)
        ledger.wiring.tell(ledger.where, "reads several in one place", held.numpy())
    return found


def _computed(ledger: Ledger, func: Any, args: tuple[Any, ...], result: Any) -> None:
    """A layer whose weights are no parameter: what it reads must stay."""
    why = f"the weights of {ledger.where} are computed"
    for tensor in tensors_in(args):
        keep(ledger, tensor, why)
    ledger.wiring.unfollowed[f"computed weights at {ledger.where}"] = None
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
    if not isinstance(weight, Weight) or None in weight.axes[:2]:
        _computed(ledger, func, args, result)
        return
    dimension = images.ndim - (weights.ndim - 1)
    given = _channels(ledger, images, dimension)
    for number in ("stride", "padding", "dilation", "output_padding"):
        note_numbers(ledger, number, argument(func, args, kwargs, number))
    inside, outside = (0, 1) if transposed else (1, 0)
    # A depthwise convolution that shrank to one channel is still one.
    if groups == 1 and Axis(weight.name, INPUTS) not in ledger.wider:
        made = ledger.nodes(weight, outside)
        _read(ledger, weight, inside, given)
        _make(ledger, weight, outside, made)
    else:
        made = _grouped(ledger, weight, given, groups, transposed)
    _bias(ledger, argument(func, args, kwargs, "bias"), made)
    ledger.label(result, spread(made, dimension, result))


def _read(ledger: Ledger, weight: Weight, dimension: int, given: Nodes) -> None:
    axis = weight.axes[dimension]
    assert axis is not None
    nodes = ledger.nodes(weight, dimension)
    ledger.wiring.readers[Axis(weight.name, axis)] = None
    ledger.wiring.join(nodes, given, f"{ledger.where} reads channels that must stay")
    ledger.wiring.tell(ledger.where, "reads them", nodes)


def _make(ledger: Ledger, weight: Weight, dimension: int, made: Nodes) -> None:
    axis = weight.axes[dimension]
    assert axis is not None
    ledger.wiring.sources[Axis(weight.name, axis)] = None
    ledger.wiring.tell(ledger.where, "makes them", made)


def _grouped(ledger: Ledger, weight: Weight, given: Nodes, groups: int, transposed: bool) -> Nodes:
    """Inputs and outputs of one group stand and fall together; depthwise is a group a channel."""
    inputs = ledger.wiring.nodes(weight.name, INPUTS, len(given))
    ledger.wiring.blocks[Axis(weight.name, INPUTS)] = len(given) // groups
    ledger.wiring.join(inputs, given, f"{ledger.where} reads channels that must stay")
    blocks = inputs.reshape(groups, -1)
    ledger.wiring.join(blocks[:, :1], blocks, "")
    makers = ledger.nodes(weight, 0)
    _make(ledger, weight, 0, makers)
    made = makers.reshape(groups, -1)
    ledger.wiring.join(blocks[:, :1], made, "")
    together = "filters each on its own" if blocks.shape[1] == 1 else "filters them in groups"
    ledger.wiring.tell(ledger.where, together, inputs)
    if transposed:  # a group's outputs share one axis of the weight: its first input is for all
        return np.repeat(made[:, 0], weight.shape[1])
    return makers


def _bias(ledger: Ledger, bias: Any, made: Nodes) -> None:
    if bias is None:
        return
    nodes = ledger.labels(bias).numpy()
    if len(nodes) == len(made):
        ledger.wiring.join(nodes, made, f"the bias of {ledger.where} must stay")


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


@rule("matmul", "mm")
def _matmul(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    if isinstance(ledger.value(args[1]), Weight) and args[1].ndim == 2:
        _dense(ledger, func, args, result, 0, 1, None)
    else:
        cannot_follow(ledger, func, args, kwargs, result)


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
    given = _channels(ledger, args[0], -1)
    made = ledger.nodes(weight, outside)
    _read(ledger, weight, inside, given)
    _make(ledger, weight, outside, made)
    _bias(ledger, bias, made)
    ledger.label(result, spread(made, result.ndim - 1, result))


@rule("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
@rule("group_norm", "native_group_norm")
def _channel_norm(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Scales and shifts each channel; a group norm mixes those of a group."""
    name = name_of(func)
    given = _channels(ledger, args[0], 1)
    note_numbers(ledger, "eps", argument(func, args, kwargs, "eps"))
    what = "normalizes each on its own"
    if "group" in name:
        groups = argument(func, args, kwargs, "num_groups" if name == "group_norm" else "group")
        rows = given.reshape(groups, -1)
        ledger.wiring.join(
            rows[:, :1], rows, f"{ledger.where} mixes them with channels that must stay"
        )
        what = f"normalizes them in {groups} groups"
    ledger.wiring.tell(ledger.where, what, given)
    for tensor in tensors_in(args[1:], kwargs):
        nodes = ledger.labels(tensor).numpy()
        if nodes.shape == given.shape:
            ledger.wiring.join(nodes, given, f"{ledger.where} normalizes channels that must stay")
    first, *rest = tensors_in(result)
    ledger.label(first, spread(given, 1, first))
    for tensor in rest:
        ledger.label(tensor, fixed(tensor))
