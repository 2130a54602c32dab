"""Rules of reads and writes by position: ``x[:, order]``, ``y[:, a:b] = ...``, ``zeros_like``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.pruning.tracing.channel_graph import FIXED, ZERO, known
from secateur.pruning.tracing.labels import Ledger, Traits, Weight, moved, thin
from secateur.pruning.tracing.reshape import couple_if_reordered
from secateur.pruning.tracing.rules import (
    argument,
    cannot_follow,
    fixed,
    name_of,
    note_numbers,
    rule,
    spare,
    tensors_in,
    varying,
)


@rule("zeros_like", "zeros", "new_zeros", "zero_")
def _zeros(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    ledger.carry(result, torch.tensor(ZERO).expand(result.shape), Traits(zero=True))


@rule("index", "index_select")
def _index(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Elements by a list of known positions; rows of a table."""
    if name_of(func) == "index_select":
        tensor, dimension, positions = args[0], args[1] % args[0].ndim, args[2]
        by = {dimension: positions}
    else:
        tensor = args[0]
        by = {d: each for d, each in enumerate(args[1]) if each is not None}
    weight = ledger.value(tensor)
    if isinstance(weight, Weight) and len(by) == 1:
        ((dimension, positions),) = by.items()
        value = _table(weight, dimension, positions)
        if value is not None:
            ledger.carry(result, value, ledger.traits(tensor))
            return
    before = ledger.labels(tensor)
    wide = varying(before)
    if not any(dimension in by for dimension in wide) and len(by) == 1:
        ((dimension, positions),) = by.items()
        labels = before.narrow(dimension, 0, 1).expand(
            *before.shape[:dimension], *result.shape[dimension : dimension + positions.ndim],
            *before.shape[dimension + 1 :],
        )  # fmt: skip
        ledger.label(result, labels, ledger.traits(tensor))
        return
    _by_values(ledger, func, args, kwargs, result, tensor, by)


def _by_values(
    ledger: Ledger,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    result: Any,
    tensor: Tensor,
    by: dict[int, Tensor],
) -> None:
    """Channels by a list of positions."""
    data = [ledger.data(positions) for positions in by.values()]
    if len(by) != 1 or data[0] is None or data[0].ndim != 1 or data[0].dtype == torch.bool:
        cannot_follow(ledger, func, args, kwargs, result)
        return
    ((dimension, positions),) = by.items()
    before = ledger.labels(tensor)
    labels = spare(before.index_select(dimension, data[0]))
    holder = ledger.value(positions)
    if isinstance(holder, Weight):
        index = ledger.nodes(holder, 0)
        shape = [-1 if d == dimension else 1 for d in range(labels.ndim)]
        (thinned,) = thin(labels)
        ledger.graph.join(
            torch.from_numpy(index).view(shape).expand(thinned.shape).numpy(),
            thinned.numpy(),
            f"{holder.name} reorders channels that must stay",
        )
        ledger.graph.tell(ledger.where, f"reorders them by {holder.name}", thinned.numpy())
        ledger.graph.indices[holder.name] = tuple(data[0].tolist())
    else:
        couple_if_reordered(ledger, func, before, [labels])
    ledger.carry(result, labels, ledger.traits(tensor))


def _table(weight: Weight, dimension: int, positions: Tensor) -> Weight | None:
    """A weight read by rows, such as a table of relative positions; its other axes are kept."""
    if weight.axes[dimension] is None or positions.dtype == torch.bool:
        return None
    rest = [d for d in range(len(weight.shape)) if d != dimension and weight.shape[d] > 1]
    if len(rest) != 1:
        return None
    head: list[int | None] = list(range(dimension))
    tail: list[int | None] = list(range(dimension + 1, len(weight.shape)))
    new = moved(weight, head + [None] * positions.ndim + tail)
    shape = (*weight.shape[:dimension], *positions.shape, *weight.shape[dimension + 1 :])
    return Weight(new.name, new.axes, tuple(shape), weight.size)


@rule("copy_")
def _write(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Overwrite a tensor, or a part through a view; all other views change too."""
    target, source = args[:2]
    if isinstance(ledger.value(target), Weight):
        cannot_follow(ledger, func, args, kwargs, result)
        return
    values = ledger.value(source)
    new = values if isinstance(values, Tensor) else ledger.labels(source)
    new = new.expand(target.shape)
    zero = ledger.traits(source).zero
    size = target.untyped_storage().nbytes() // max(1, target.element_size())
    memory = torch.full((size,), FIXED)
    views = list(ledger.aliases(target))
    for view in sorted(views, key=lambda each: each.numel()):
        labels = ledger.value(view)
        assert isinstance(labels, Tensor)
        _place(memory, view).copy_(labels)
    _place(memory, target).copy_(new)
    for view in [*views, target, *tensors_in(result)]:
        before = ledger.traits(view).zero
        labels = _fill(_place(memory, view).clone(), varying(new))
        ledger.carry(view, spare(labels), Traits(zero=zero and (before or view is target)))
    ledger.graph.visits.append(known(thin(new)[0].numpy()))


def _place(memory: Tensor, view: Tensor) -> Tensor:
    return memory.as_strided(view.shape, view.stride(), view.storage_offset())


def _fill(labels: Tensor, dimensions: list[int]) -> Tensor:
    """Label zeros with the channel whose pixels surround them."""
    for dimension in dimensions:
        if dimension >= labels.ndim or not bool((labels == ZERO).any()):
            continue
        rows = labels.movedim(dimension, 0)
        flat = rows.reshape(len(rows), -1)
        low = torch.where(flat == ZERO, torch.iinfo(torch.int64).max, flat).amin(1)
        high = flat.amax(1)
        alone = ((low == high) & (high >= 0)).nonzero().flatten()
        for row in alone.tolist():
            rows[row] = high[row]
    return labels


@rule("fill_", "fill")
def _filled(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    note_numbers(ledger, name_of(func), argument(func, args, kwargs, "value"))
    value = ledger.value(args[0])
    if isinstance(value, Tensor) and bool((thin(value)[0] >= 0).any()):
        cannot_follow(ledger, func, args, kwargs, result)
        return
    ledger.carry(result, fixed(result))
