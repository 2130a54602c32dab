"""The registry of rules for torch's operations, and functions shared by rules.

An operation without a rule is decomposed if torch has a decomposition. Otherwise its inputs are
protected, and it is reported by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from secateur.pruning.tracing.channel_graph import FIXED, Nodes
from secateur.pruning.tracing.labels import Ledger, Weight, thin

Rule = Callable[[Ledger, Any, tuple[Any, ...], dict[str, Any], Any], None]

_RULES: dict[str, Rule] = {}
_MOVES: set[Rule] = set()
_TAKES_FACTORS: set[Rule] = set()
_TAKES_PAIRS: set[Rule] = set()
_OTHERS: list[tuple[Callable[[Any], bool], Rule]] = []


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule for operators of these names."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def moves(function: Rule) -> Rule:
    """Mark a rule of operations that only move or copy elements."""
    _MOVES.add(function)
    return function


def only_moves(function: Rule) -> bool:
    """Whether a rule is marked by :func:`moves`."""
    return function in _MOVES


def takes_factor(function: Rule) -> Rule:
    """Mark a rule that handles open factors."""
    _TAKES_FACTORS.add(function)
    return function


def takes_factors(function: Rule) -> bool:
    """Whether a rule handles open factors."""
    return function in _TAKES_FACTORS


def takes_pair(function: Rule) -> Rule:
    """Mark a rule that handles outer products."""
    _TAKES_PAIRS.add(function)
    return function


def takes_pairs(function: Rule) -> bool:
    """Whether a rule handles outer products."""
    return function in _TAKES_PAIRS


def rule_where(applies: Callable[[Any], bool]) -> Callable[[Rule], Rule]:
    """Register a function as the rule for other operators for which ``applies`` is true."""

    def register(function: Rule) -> Rule:
        _OTHERS.append((applies, function))
        return function

    return register


def rule_of(func: Any) -> Rule | None:
    """The rule for an operator, or None."""
    own = _RULES.get(name_of(func))
    return own or next((function for applies, function in _OTHERS if applies(func)), None)


def name_of(func: Any) -> str:
    """An operator's name, such as ``conv2d``."""
    return func._schema.name.removeprefix("aten::")


def tensors_in(*values: Any) -> list[Tensor]:
    """All tensors in lists, tuples and mappings, in order."""
    tensors: list[Tensor] = []
    _collect(values, tensors)
    return tensors


def _collect(value: Any, tensors: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        tensors.append(value)
    elif isinstance(value, (tuple, list)):
        for each in value:
            _collect(each, tensors)
    elif isinstance(value, dict):
        for each in value.values():
            _collect(each, tensors)
    elif value is not None and not isinstance(value, (int, float, str, torch.dtype)):
        tensors += [leaf for leaf in tree_iter(value) if isinstance(leaf, Tensor)]


def argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """The value of an operator's argument, or None if it has no such argument."""
    for position, known_as in enumerate(func._schema.arguments):
        if known_as.name == name:
            default = known_as.default_value
            return args[position] if position < len(args) else kwargs.get(name, default)
    return None


def result_without_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Result of a norm on the meta device, for which torch takes milliseconds.

    None for other operations, and if sizes do not agree, so that torch raises its own error.
    """
    name = name_of(func)
    if name not in _NORMS or kwargs or not args[0].is_meta or args[0].ndim < 2:
        return None
    images, first, end = args[0], *_NORMS[name]
    size = images.shape[1:2]
    if name == "layer_norm":
        size = torch.Size(args[1])
    fits = size == images.shape[-len(size) :] if name == "layer_norm" else True
    if name == "group_norm":
        fits = images.shape[1] % args[1] == 0
    fits = fits and (name == "batch_norm" or images.is_contiguous())
    sizes = (tensor.shape for tensor in args[first:end] if tensor is not None)
    return torch.empty_like(images) if fits and all(s == size for s in sizes) else None


_NORMS = {"batch_norm": (1, 5), "group_norm": (2, 4), "layer_norm": (2, 4)}
"""Norms, with the positions of their weights among the arguments."""


def note_numbers(ledger: Ledger, name: str, values: Any) -> None:
    """Record the numeric arguments of an operation, to detect those that depend on a width."""
    for value in tree_iter(values):
        single = isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta
        if single or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            ledger.number(name, float(value))


def fixed(tensor: Tensor) -> Tensor:
    """Labels of a tensor without channels."""
    return torch.tensor(FIXED).expand(tensor.shape)


# ---- labels


def varying(labels: Tensor) -> list[int]:
    """Dimensions along which labels differ."""
    (thinned,) = thin(labels)
    return [
        d
        for d in range(thinned.ndim)
        if thinned.shape[d] > 1 and not bool((thinned == thinned.narrow(d, 0, 1)).all())
    ]


def spare(labels: Tensor) -> Tensor:
    """The same labels with stride zero along dimensions where they are equal."""
    wide = varying(labels)
    index = tuple(slice(None) if d in wide else slice(0, 1) for d in range(labels.ndim))
    return labels[index].expand(labels.shape)


def vector(labels: Tensor, dimension: int) -> Nodes | None:
    """Labels along one dimension, or None if they differ along another."""
    if any(d != dimension for d in varying(labels)):
        return None
    index = tuple(slice(None) if d == dimension else 0 for d in range(labels.ndim))
    return labels[index].numpy()


def spread(nodes: Nodes, dimension: int, like: Tensor) -> Tensor:
    """Labels in the shape of ``like`` that differ along one dimension."""
    shape = [-1 if d == dimension else 1 for d in range(like.ndim)]
    return torch.from_numpy(nodes).view(shape).expand(like.shape)


# ---- outer products


def join_pair(ledger: Ledger, tensor: Tensor) -> None:
    """Join both labels of an outer product; other tensors stay as they are."""
    value, traits = ledger.value(tensor), ledger.traits(tensor)
    if traits.pair is not None and isinstance(value, Tensor):
        labels = joined_pair(ledger, value, traits.pair.labels)
        zero = traits.zero or traits.pair.zero
        ledger.carry(tensor, labels, replace(traits, zero=zero, pair=None))


def joined_pair(ledger: Ledger, first: Tensor, second: Tensor) -> Tensor:
    """Join both labels of an outer product; return labels without the dimensions of one alone."""
    pair = thin(first, [second])
    what = f"product at {ledger.where}"
    ledger.graph.join(pair[0].numpy(), pair[1].numpy(), f"{what} mixes them with others")
    ledger.graph.tell(ledger.where, f"mixes them all ({what})", pair[0].numpy())
    common = varying(second)
    index = tuple(slice(None) if d in common else slice(0, 1) for d in range(first.ndim))
    return first[index].expand(first.shape)


# ---- operations without a rule


def cannot_follow(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Protect the inputs of an operation without a rule; its results have no channels."""
    name = name_of(func)
    why = f"{name} at {ledger.where} cannot be followed"
    touched = False
    for position, value in enumerate((*args, *kwargs.values())):
        for tensor in tensors_in(value):
            touched |= keep(ledger, tensor, why)
            if position < len(args) and _writes(func, position):
                for alias in list(ledger.aliases(tensor)):
                    keep(ledger, alias, why)
                    ledger.label(alias, fixed(alias))
    if touched:
        ledger.graph.unfollowed[f"{name} at {ledger.where}"] = None
    for tensor in tensors_in(result):
        ledger.label(tensor, fixed(tensor))


def _writes(func: Any, position: int) -> bool:
    info = func._schema.arguments[position].alias_info
    return info is not None and info.is_write


def keep(ledger: Ledger, tensor: Tensor, why: str) -> bool:
    """Protect all channels of ``tensor``; return whether there were any."""
    value = ledger.value(tensor)
    if isinstance(value, Weight):
        for dimension, axis in enumerate(value.axes):
            if axis is not None:
                ledger.graph.protect(ledger.nodes(value, dimension), why)
        return False
    (thinned,) = thin(value)
    ledger.graph.protect(thinned.numpy(), why)
    return bool((thinned != FIXED).any())
