"""Products of two tensors, summed over some dimensions: einsum, matmul, attention.

A product with a weight reads channels and produces others, as a linear layer does. In a product of
two activations, summed channels of both depend on each other; masked channels add zero, so that
they can be removed. Attentions thus lose channels within each head, equally many of each, or entire
heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.pruning.tracing.channel_graph import FIXED, Nodes, known
from secateur.pruning.tracing.labels import PLAIN, Ledger, Pair, Traits, Weight, thin
from secateur.pruning.tracing.layers import dense
from secateur.pruning.tracing.rules import (
    argument,
    cannot_follow,
    join_pair,
    joined_pair,
    name_of,
    rule,
    spare,
    takes_pair,
    varying,
)


@dataclass(frozen=True)
class _Operand:
    """An operand: labels, a letter for each dimension, and whether masked elements are zero.

    An outer product has a second operand ``pair`` of the same letters.
    """

    labels: Tensor
    letters: str
    zero: bool
    pair: _Operand | None = None

    def wide(self) -> set[str]:
        return {self.letters[d] for d in varying(self.labels)}

    def aligned(self, letters: str) -> Tensor:
        """Labels with the dimensions ``letters``; missing ones have size 1."""
        own = [letter for letter in letters if letter in self.letters]
        order = [self.letters.index(letter) for letter in own]
        index = tuple(slice(None) if letter in own else None for letter in letters)
        first = tuple(slice(None) if letter in letters else 0 for letter in self.letters)
        left = [letter for letter in self.letters if letter in letters]
        return self.labels[first].permute([left.index(self.letters[d]) for d in order])[index]


@rule("matmul", "mm", "bmm")
@takes_pair
def _matmul(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    first, second = args[:2]
    batch = "".join(chr(ord("a") + d) for d in range(max(first.ndim, second.ndim, 2) - 2))
    left = "m"[2 - min(first.ndim, 2) :] + "k"
    right = "k" + "n"[2 - min(second.ndim, 2) :]
    left_batch = batch[len(batch) - max(first.ndim - 2, 0) :] if first.ndim > 2 else ""
    right_batch = batch[len(batch) - max(second.ndim - 2, 0) :] if second.ndim > 2 else ""
    out = batch + left[:-1] + right[1:]
    if not _product(ledger, first, second, (left_batch + left, right_batch + right, out), result):
        cannot_follow(ledger, func, args, kwargs, result)


@rule("einsum")
@takes_pair
def _einsum(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    equation, tensors = args[0].replace(" ", ""), args[1]
    if len(tensors) != 2 or "->" not in equation:
        cannot_follow(ledger, func, args, kwargs, result)
        return
    inputs, out = equation.split("->")
    left, right = inputs.split(",")
    spare_letters = "ABCDEFGH"
    many = max(t.ndim - len(each) + 3 for t, each in zip(tensors, (left, right), strict=True))
    if "..." in equation:
        dots = spare_letters[:many]
        left = left.replace("...", dots[many - (tensors[0].ndim - len(left) + 3) :])
        right = right.replace("...", dots[many - (tensors[1].ndim - len(right) + 3) :])
        out = out.replace("...", dots)
    repeated = any(len(set(each)) < len(each) for each in (left, right))
    if repeated or not _product(ledger, tensors[0], tensors[1], (left, right, out), result):
        cannot_follow(ledger, func, args, kwargs, result)


def _product(
    ledger: Ledger, first: Tensor, second: Tensor, letters: tuple[str, str, str], result: Tensor
) -> bool:
    """Label a product; return whether it was possible."""
    left, right, out = letters
    for images, weights, names in ((first, second, (left, right)), (second, first, (right, left))):
        weight = ledger.value(weights)
        if isinstance(weight, Weight) and weights.ndim > 1:
            join_pair(ledger, images)
            return _weighted(ledger, images, weights, (*names, out), result)
    if _sums_one_of_pair(ledger, first, second, letters, result):
        return True
    operands = [
        _Operand(spare(ledger.labels(t)), each, ledger.traits(t).zero)
        for t, each in ((first, left), (second, right))
    ]
    joined = _contract(ledger, operands[0], operands[1], out, result.shape)
    pair = None
    if joined.pair is not None:
        pair = Pair(joined.pair.labels, joined.pair.zero)
        ledger.graph.visits.append(known(thin(pair.labels)[0].numpy()))
    ledger.label(result, joined.labels, Traits(zero=joined.zero, pair=pair))
    return True


def _sums_one_of_pair(
    ledger: Ledger, first: Tensor, second: Tensor, letters: tuple[str, str, str], result: Tensor
) -> bool:
    """Label the product of an outer product and a tensor, if it sums over one's channels.

    Otherwise both labels of outer products are joined.
    """
    left, right, out = letters
    outer = [each for each in (first, second) if ledger.traits(each).pair is not None]
    if len(outer) == 1:
        (product,) = outer
        own, other = (left, right) if product is first else (right, left)
        partner = second if product is first else first
        traits = ledger.traits(product)
        assert traits.pair is not None
        sides = [
            _Operand(spare(ledger.labels(product)), own, traits.zero),
            _Operand(spare(traits.pair.labels), own, traits.pair.zero),
        ]
        summed = {s for s in own if s in other and s not in out}
        sides.sort(key=lambda side: not side.wide() & summed)
        if sides[0].wide() & summed and not sides[1].wide() & summed:
            operand = _Operand(spare(ledger.labels(partner)), other, ledger.traits(partner).zero)
            where = f"product at {ledger.where}"
            rest = _contract(ledger, sides[0], operand, out, result.shape)
            _hold_rows(ledger, sides[1], operand, where)
            labels = _without(sides[1], sorted(summed)).aligned(out).expand(result.shape)
            pair = [each.numpy() for each in thin(labels, [rest.labels])]
            if (pair[1] >= 0).any():
                ledger.graph.join(pair[0], pair[1], f"{where} meets channels that must stay")
            ledger.label(result, labels, Traits(zero=sides[1].zero))
            return True
    for each in outer:
        join_pair(ledger, each)
    return False


def _weighted(
    ledger: Ledger, images: Tensor, weights: Tensor, letters: tuple[str, str, str], result: Tensor
) -> bool:
    """The product of an activation and a weight with one summed dimension."""
    left, right, out = letters
    weight = ledger.value(weights)
    assert isinstance(weight, Weight)
    summed = [letter for letter in right if letter in left and letter not in out]
    produced = [letter for letter in right if letter not in left and letter in out]
    if len(summed) != 1 or len(produced) != 1 or weights.ndim != 2 or None in weight.axes:
        return False
    where = (left.index(summed[0]), right.index(summed[0]), right.index(produced[0]))
    dense(ledger, images, weights, where, None, result, out.index(produced[0]))
    return True


def _contract(
    ledger: Ledger, first: _Operand, second: _Operand, out: str, shape: Sequence[int]
) -> _Operand:
    """Label a product that is summed over all letters not in ``out``."""
    where = f"product at {ledger.where}"
    single = not (first.wide() and second.wide())
    summed = [s for s in first.letters if s in second.letters and s not in out]
    alone = [s for each in (first, second) for s in each.letters if s not in out + "".join(summed)]
    first = _sum_alone(ledger, first, alone, where)
    second = _sum_alone(ledger, second, alone, where)
    for letter in summed:
        if letter in first.wide() or letter in second.wide():
            grid = "".join(s for s in first.letters if s in second.letters)
            first_labels, second_labels = _grids(first, second, grid)
            ledger.graph.join(first_labels, second_labels, f"{where} meets channels that must stay")
            ledger.graph.tell(ledger.where, "multiplies and adds them up", first_labels)
            # If only one varies along the letter, its channels all depend on the other's.
            both = letter in first.wide() and letter in second.wide()
            sum_up = _reduced if both and (first.zero or second.zero) else _joined
            first = sum_up(ledger, first, letter, where)
            second = sum_up(ledger, second, letter, where)
    first, second = (_without(each, summed) for each in (first, second))
    return _outer(ledger, first, second, out, shape, where, single)


def _grids(first: _Operand, second: _Operand, letters: str) -> tuple[Nodes, Nodes]:
    """Labels of both along common letters, joined along all other letters."""
    first_labels, second_labels = (
        _first_along(each, letters).aligned(letters) for each in (first, second)
    )
    first_labels, second_labels = torch.broadcast_tensors(first_labels, second_labels)
    return tuple(each.numpy() for each in thin(first_labels, [second_labels]))  # type: ignore[return-value]


def _first_along(operand: _Operand, letters: str) -> _Operand:
    for letter in operand.letters:
        if letter not in letters:
            operand = _take_first(operand, letter)
    return operand


def _take_first(operand: _Operand, letter: str) -> _Operand:
    dimension = operand.letters.index(letter)
    letters = operand.letters.replace(letter, "")
    return replace(operand, labels=operand.labels.select(dimension, 0), letters=letters)


def _sum_alone(ledger: Ledger, operand: _Operand, letters: list[str], where: str) -> _Operand:
    for letter in letters:
        if letter in operand.letters:
            operand = _take_first(_joined(ledger, operand, letter, where), letter)
    return operand


def _without(operand: _Operand, letters: list[str]) -> _Operand:
    for letter in letters:
        operand = _take_first(operand, letter)
    return operand


def _joined(ledger: Ledger, operand: _Operand, letter: str, where: str) -> _Operand:
    """Join all nodes along one letter."""
    dimension = operand.letters.index(letter)
    if letter in operand.wide():
        (thinned,) = thin(operand.labels)
        first = thinned.narrow(dimension, 0, 1)
        ledger.graph.join(first.numpy(), thinned.numpy(), f"{where} mixes them with others")
        ledger.graph.tell(ledger.where, f"mixes them all ({where})", thinned.numpy())
    first = operand.labels.narrow(dimension, 0, 1).expand(operand.labels.shape)
    return replace(operand, labels=first)


def _reduced(ledger: Ledger, operand: _Operand, letter: str, where: str) -> _Operand:
    """Sum over channels: entire heads, or remaining channels, as masked ones add zero."""
    if letter not in operand.wide():
        return operand
    if ledger.graph.heads:
        return _joined(ledger, operand, letter, where)
    dimension = operand.letters.index(letter)
    (thinned,) = thin(operand.labels)
    rows = thinned.movedim(dimension, -1).reshape(-1, thinned.shape[dimension])
    if len(rows) > 1:
        ledger.graph.shrink_alike([row.numpy() for row in rows], where)
    return replace(operand, labels=torch.tensor(FIXED).expand(operand.labels.shape))


def _outer(
    ledger: Ledger,
    first: _Operand,
    second: _Operand,
    out: str,
    shape: Sequence[int],
    where: str,
    single: bool,
) -> _Operand:
    """An outer product with channels of both operands, one of which may have a ``single`` one."""
    produced = [each for each in (first, second) if bool((thin(each.labels)[0] != FIXED).any())]
    if not produced:
        return _Operand(torch.tensor(FIXED).expand(tuple(shape)), out, False)
    if len(produced) == 2:
        own = first.wide() & (set(first.letters) - set(second.letters))
        other = second.wide() & (set(second.letters) - set(first.letters))
        if own and other:
            return _paired(first, second, out, shape)
        if single and bool(first.wide()) != bool(second.wide()) and not ledger.graph.heads:
            operand, lone = (first, second) if first.wide() else (second, first)
            return _held(ledger, operand, lone, out, shape, where, "spreads them over channels")
        if (own or other) and first.wide() and second.wide() and not ledger.graph.heads:
            return _held(ledger, *((first, second) if own else (second, first)), out, shape, where)
        first_labels, second_labels = (
            each.aligned(out).expand(tuple(shape)) for each in (first, second)
        )
        pair = [each.numpy() for each in thin(first_labels, [second_labels])]
        ledger.graph.join(pair[0], pair[1], f"{where} meets channels that must stay")
        ledger.graph.tell(ledger.where, "multiplies them pair by pair", pair[0])
        labels = second_labels if other and not own else first_labels
        return _Operand(labels, out, first.zero or second.zero)
    (operand,) = produced
    fixed = second if operand is first else first
    return _held(ledger, operand, fixed, out, shape, where)


def _paired(first: _Operand, second: _Operand, out: str, shape: Sequence[int]) -> _Operand:
    """An outer product with channels of both operands on its own dimensions."""
    one, other = (
        _Operand(each.aligned(out).expand(tuple(shape)), out, each.zero) for each in (first, second)
    )
    return replace(one, pair=other)


def _held(
    ledger: Ledger,
    operand: _Operand,
    other: _Operand,
    out: str,
    shape: Sequence[int],
    where: str,
    why: str = "counts them as heads",
) -> _Operand:
    """A product whose channels are those of ``operand``; those of ``other``, the heads, stay."""
    ledger.graph.protect(thin(other.labels)[0].numpy(), f"{where} {why}")
    _hold_rows(ledger, operand, other, where)
    return _Operand(operand.aligned(out).expand(tuple(shape)), out, operand.zero)


def _hold_rows(ledger: Ledger, operand: _Operand, fixed: _Operand, where: str) -> None:
    """Channels combined with a tensor of equal size that has no channels."""
    for letter in operand.wide():
        if letter not in fixed.letters or fixed.labels.shape[fixed.letters.index(letter)] == 1:
            continue
        dimension = operand.letters.index(letter)
        every = [known(row.numpy()) for row in thin(operand.labels)[0].unbind(dimension)]
        rows = list({row.tobytes(): row for row in every}.values())
        if all(len(row) > 1 for row in rows) and len(np.unique(np.concatenate(rows))) == sum(
            len(row) for row in rows
        ):
            ledger.graph.shrink_alike(rows, where)
        else:
            ledger.graph.protect(np.concatenate(rows), f"{where} meets channels that must stay")


@rule("scaled_dot_product_attention")
def _attention(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Softmax of queries times keys, plus a mask, times values (Vaswani et al. 2017, eq. 1)."""
    query, key, value = args[:3]
    batch = "abcdef"[: query.ndim - 2]
    operands = []
    for tensor, letters in ((query, "mk"), (key, "nk"), (value, "nv")):
        labels = spare(ledger.labels(tensor))
        repeats = query.shape[-3] // tensor.shape[-3] if query.ndim > 2 else 1
        if repeats > 1 and argument(func, args, kwargs, "enable_gqa"):
            labels = labels.repeat_interleave(repeats, -3)
        operands.append(_Operand(labels, batch + letters, ledger.traits(tensor).zero))
    scale = argument(func, args, kwargs, "scale")
    channels = ledger.traits(query).linear
    if scale is not None:
        ledger.number(name_of(func), scale)
    elif channels is None:
        ledger.number(name_of(func), 1 / math.sqrt(query.shape[-1]))
    else:
        ledger.graph.scales.append((1 / math.sqrt(query.shape[-1]), channels))
    shape = (*query.shape[:-1], key.shape[-2])
    weights = _both(ledger, _contract(ledger, operands[0], operands[1], batch + "mn", shape))
    mask = argument(func, args, kwargs, "attn_mask")
    if mask is not None:
        weights = _masked(ledger, weights, ledger.labels(mask))
    out = _both(ledger, _contract(ledger, weights, operands[2], batch + "mv", result.shape))
    ledger.label(result, out.labels, replace(PLAIN, zero=out.zero))


def _both(ledger: Ledger, operand: _Operand) -> _Operand:
    """Join both labels of an outer product."""
    if operand.pair is None:
        return operand
    labels = joined_pair(ledger, operand.labels, operand.pair.labels)
    return replace(operand, labels=labels, zero=operand.zero or operand.pair.zero, pair=None)


def _masked(ledger: Ledger, weights: _Operand, mask: Tensor) -> _Operand:
    labels = mask.expand(weights.labels.shape)
    if not varying(labels) and not varying(weights.labels):
        return weights
    first_labels, second_labels = (each.numpy() for each in thin(weights.labels, [labels]))
    why = f"attention at {ledger.where} adds a mask that must stay"
    ledger.graph.join(first_labels, second_labels, why)
    return replace(weights, zero=False)
