"""Rules of operations that move elements: they are applied to the labels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.pruning.tracing.channel_graph import FIXED, ZERO, Nodes, known
from secateur.pruning.tracing.labels import Ledger, Traits, Value, Weight, moved, thin
from secateur.pruning.tracing.rules import (
    argument,
    cannot_follow,
    moves,
    name_of,
    note_numbers,
    rule,
    spare,
    takes_pair,
    tensors_in,
    varying,
)

_COPIES = ("alias", "clone", "contiguous", "detach", "lift_fresh")
_CONVERSIONS = (
    *("to", "_to_copy", "type_as", "dropout", "dropout_", "native_dropout", "alpha_dropout"),
    *("alpha_dropout_", "feature_dropout", "feature_dropout_", "feature_alpha_dropout"),
)
_VIEWS = ("view", "reshape", "_unsafe_view", "_reshape_copy")
_RASTER = (*_VIEWS, "flatten", "unflatten", "squeeze", "unsqueeze")
"""Elements keep their order as a C array."""
_MOVES = (
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "numpy_T"),
    *("squeeze", "unsqueeze", "expand", "repeat", "repeat_interleave", "tile", "flatten"),
    *("unflatten", "slice", "select", "narrow", "split", "split_with_sizes", "unsafe_split"),
    *("unsafe_chunk", "chunk", "tensor_split", "unbind", "flip", "roll", "rot90", "stack"),
    *("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "diagonal"),
)


@rule(*_COPIES)
@takes_pair
@moves
def _copy(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    for tensor in tensors_in(result):
        ledger.carry(tensor, ledger.value(args[0]), ledger.traits(args[0]))


@rule(*_CONVERSIONS)
@takes_pair
@moves
def _convert(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Elements keep their position but change their value."""
    for tensor in tensors_in(result):
        ledger.label(tensor, ledger.value(args[0]), ledger.traits(args[0]))


@rule(*_MOVES, *_VIEWS)
@moves
def _move(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Apply the operation to the labels."""
    name = name_of(func)
    if isinstance(args[0], Tensor) and isinstance(ledger.value(args[0]), Weight):
        weight = _moved_weight(ledger.value(args[0]), name, args, result)
        if weight is not None:
            ledger.carry(result, weight, ledger.traits(args[0]))
            return
    before = [ledger.raw(tensor) for tensor in tensors_in(args[0])]
    many = isinstance(args[0], (list, tuple))

    def move(labels: Any) -> list[Tensor]:
        if name in _VIEWS:
            return [_reshaped(labels, result.shape)]
        return tensors_in(func(labels, *args[1:], **kwargs))

    after = [spare(labels) for labels in move(before if many else before[0])]
    if len(before) == 1 and not (name == "slice" and _cuts_constants(func, before[0], args)):
        couple_if_reordered(ledger, func, before[0], after)
    order_free = many or name in _RASTER or _is_uniform(name, before[0])
    routes = order_free or _keeps_pixels(ledger, name, before[0], after, move)
    traits = _moved_traits(ledger, tensors_in(args[0]))
    for tensor, labels in zip(tensors_in(result), after, strict=True):
        own = traits
        if traits.linear is not None:
            own = replace(traits, linear=known(thin(labels)[0].numpy()))
        (ledger.carry if routes else ledger.label)(tensor, labels, own)
    if not many:
        _tell_orders(ledger, name, before[0], move)


def _cuts_constants(func: Any, labels: Tensor, args: tuple[Any, ...]) -> bool:
    """Whether a slice only counts positions without channels from either end, as ``x[:, :-1]``."""
    dimension, start, end, step = (
        argument(func, args, {}, name) for name in ("dim", "start", "end", "step")
    )
    size = labels.shape[dimension]
    line = (labels.movedim(dimension, 0).reshape(size, -1) == FIXED).all(1)
    counted = [line[bound:] if bound < 0 else line[: min(bound, size)]
               for bound in (start or 0, size if end is None else end) if bound < size]  # fmt: skip
    return step == 1 and all(bool(each.all()) for each in counted)


def couple_if_reordered(ledger: Ledger, func: Any, before: Tensor, after: list[Tensor]) -> None:
    """Record that channels are used by position, if that depends on which are present."""
    if not _keeps_order(before, after):
        ledger.graph.couple(thin(before)[0].numpy(), f"{name_of(func)} at {ledger.where}")


def _moved_traits(ledger: Ledger, tensors: list[Tensor]) -> Traits:
    """Traits of a moved tensor; of several tensors, only whether masked elements are zero."""
    every = [ledger.traits(tensor) for tensor in tensors]
    produced = [bool((thin(ledger.labels(t))[0] != FIXED).any()) for t in tensors]
    if len(every) == 1:
        return every[0]
    for tensor in tensors:
        ledger.use(tensor)
        ledger.close(tensor)
    zero = [each.zero for each, labelled in zip(every, produced, strict=True) if labelled]
    return Traits(zero=all(zero))


def _keeps_pixels(
    ledger: Ledger,
    name: str,
    before: Tensor,
    after: list[Tensor],
    move: Callable[[Tensor], list[Tensor]],
) -> bool:
    """Whether each channel's elements keep their order, so that channels are only moved.

    Otherwise the order is recorded, because it must not depend on a width.
    """
    wide = varying(before)
    sizes = [1 if d in wide else size for d, size in enumerate(before.shape)]
    places = torch.arange(math.prod(sizes)).view(sizes).expand(before.shape)
    keeps = True
    for labels, moved_places in zip(after, move(places), strict=True):
        if bool((thin(labels)[0] == ZERO).all()):
            continue
        if any(d in varying(moved_places) for d in varying(labels)):
            for order in _orders(labels, moved_places):
                if not np.array_equal(order, np.arange(math.prod(sizes))):
                    keeps = False
                    ledger.number(name, zlib.crc32(order.tobytes()))
            continue
        channel_dims = [d for d in varying(labels) if d not in varying(moved_places)]
        channel = tuple(0 if d in channel_dims else slice(None) for d in range(labels.ndim))
        line = moved_places[channel].flatten()
        if not torch.equal(line, torch.arange(math.prod(sizes))):
            keeps = False
            ledger.number(name, zlib.crc32(line.numpy().tobytes()))
    return keeps


def _is_uniform(name: str, labels: Tensor) -> bool:
    """Whether all elements are equal: zeros, or one value."""
    thinned = thin(labels)[0]
    return bool((thinned == ZERO).all()) or (name == "expand" and not bool((thinned >= 0).any()))


def _orders(labels: Tensor, places: Tensor) -> list[Nodes]:
    """The distinct orders of the pixels of a channel."""
    thinned, moved_to = (each.flatten().numpy() for each in thin(labels, [places]))
    order = np.argsort(thinned, kind="stable")
    _, starts = np.unique(thinned[order], return_index=True)
    several = zip(np.unique(thinned), np.split(moved_to[order], starts[1:]), strict=True)
    lines = {tuple(line.tolist()) for label, line in several if label != ZERO}
    return [np.array(line) for line in sorted(lines)]


def _reshaped(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels in another shape; strides of zero are kept where possible."""
    same = 0
    while same < min(labels.ndim, len(shape)) and (
        labels.stride(-1 - same) == 0 and labels.shape[-1 - same] == shape[-1 - same]
    ):
        same += 1
    ones = [1] * same
    narrow: tuple[Any, ...] = (..., *[slice(0, 1)] * same)
    head = labels[narrow]
    return head.reshape([*shape[: len(shape) - same], *ones]).expand(tuple(shape))


def _tell_orders(
    ledger: Ledger, name: str, labels: Tensor, move: Callable[[Tensor], list[Tensor]]
) -> None:
    """Record the new order of labels that occur more than once."""
    (thinned,) = thin(labels)
    line = thinned.flatten().numpy()
    if len(known(line)) == np.count_nonzero(line >= 0):
        return
    ranks = torch.from_numpy(_ranks(line)).view(thinned.shape).expand(labels.shape)
    for result, places in zip(move(labels), move(ranks), strict=True):
        labels_after, occurrence = (each.flatten().numpy() for each in thin(result, [places]))
        order = np.argsort(labels_after, kind="stable")
        values, starts = np.unique(labels_after[order], return_index=True)
        alike: dict[tuple[int, ...], list[int]] = {}
        for value, ranked_here in zip(
            values.tolist(), np.split(occurrence[order], starts[1:]), strict=True
        ):
            if value >= 0:
                alike.setdefault(tuple(ranked_here.tolist()), []).append(value)
        for ranked in sorted(alike):
            ledger.graph.visits.append(known(np.array(alike[ranked])))
            for rank in ranked:
                ledger.number(name, rank)


def _ranks(line: Nodes) -> Nodes:
    """For each element, the number of equal ones before it."""
    order = np.argsort(line, kind="stable")
    _, starts, counts = np.unique(line[order], return_index=True, return_counts=True)
    ranks = np.empty(len(line), np.int64)
    ranks[order] = np.arange(len(line)) - np.repeat(starts, counts)
    return ranks


def _keeps_order(before: Tensor, after: list[Tensor]) -> bool:
    """Whether removing channels commutes with the move, for any channels."""
    thinned = thin(before)[0]
    distinct = thinned.unique()
    if len(distinct) < 2:
        return True
    for labels in after:
        if len(varying(labels)) > 1:
            return False
        held_after = thin(labels)[0]
        fewer = len(held_after.unique()) < len(distinct)
        if fewer or not torch.equal(_firsts(held_after), _firsts(thinned)):
            return False
    return True


def _firsts(labels: Tensor) -> Tensor:
    """Distinct labels in order of appearance."""
    values, index = np.unique(labels.numpy(), return_index=True)
    return torch.from_numpy(values[np.argsort(index)])


def _moved_weight(value: Value, name: str, args: tuple[Any, ...], result: Any) -> Weight | None:
    """A weight with reordered axes or added dimensions of size 1; None otherwise."""
    assert isinstance(value, Weight)
    rank = len(value.shape)
    if name in ("t", "numpy_T"):
        return moved(value, list(reversed(range(rank))))
    if name in ("transpose", "swapaxes", "swapdims"):
        order: list[int | None] = list(range(rank))
        first, second = args[1] % rank, args[2] % rank
        order[first], order[second] = second, first
        return moved(value, order)
    if name == "permute":
        return moved(value, [d % rank for d in args[1]])
    if name in (*_VIEWS, "unsqueeze", "squeeze", "flatten", "unflatten"):
        return _with_ones(value, tuple(result.shape))
    return None


def _with_ones(weight: Weight, shape: tuple[int, ...]) -> Weight | None:
    """The same axes in the same order, with other dimensions of size 1 between them."""
    axes: list[int | None] = [None] * len(shape)
    for d, size in enumerate(weight.shape):
        if size > 1 and weight.axes[d] is not None:
            after = math.prod(weight.shape[d + 1 :])
            places = [e for e, new in enumerate(shape) if new == size]
            place = next((e for e in places if math.prod(shape[e + 1 :]) == after), None)
            if place is None:
                return None
            axes[place] = weight.axes[d]
    return replace(weight, axes=tuple(axes), shape=shape)


@rule("cat", "concat", "concatenate")
@moves
def _cat(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    parts = [ledger.labels(t) for t in tensors_in(args[0]) if not (t.ndim == 1 and t.numel() == 0)]
    dimension = (argument(func, args, kwargs, "dim") or 0) % result.ndim
    index = tuple(
        slice(0, 1) if d != dimension and all(p.stride(d) == 0 for p in parts) else slice(None)
        for d in range(result.ndim)
    )
    joined = torch.cat([part[index] for part in parts], dimension)
    joined = joined.expand(result.shape)
    routes = len(parts) == 1 or dimension in varying(joined)  # it makes larger maps
    traits = _moved_traits(ledger, tensors_in(args[0]))
    (ledger.carry if routes else ledger.label)(result, joined, traits)


@rule("pad", "constant_pad_nd", "_pad_enum")
def _pad(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Padding of pixels extends a channel; padding of channels adds fixed ones."""
    labels = ledger.labels(args[0])
    amounts = list(args[1])
    wide = varying(labels)
    pixels = False
    name = name_of(func)
    mode = argument(func, args, kwargs, "mode") if name != "constant_pad_nd" else "constant"
    for pair in range(len(amounts) // 2):
        dimension = labels.ndim - 1 - pair
        before, after = amounts[2 * pair : 2 * pair + 2]
        if dimension in wide:
            if mode not in ("constant", 0):
                cannot_follow(ledger, func, args, kwargs, result)
                return
            rest = [0, 0] * pair
            labels = F.pad(labels, [*rest, before, after], value=FIXED)
            if before < 0 or after < 0:
                ledger.graph.couple(labels.numpy(), f"pad at {ledger.where}")
        else:
            note_numbers(ledger, name, (before, after))
            pixels |= bool(before or after)
            size = list(labels.shape)
            size[dimension] += before + after
            labels = labels.narrow(dimension, 0, 1).expand(size)
    zero = not pixels or mode not in ("constant", 0) or not argument(func, args, kwargs, "value")
    ledger.label(result, labels, Traits(zero=zero and ledger.traits(args[0]).zero))
