"""Rules of operations without weights: elementwise, on planes of pixels, along dimensions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from secateur.pruning.tracing.channel_graph import FIXED, known
from secateur.pruning.tracing.factors import passed_on
from secateur.pruning.tracing.labels import Factor, Ledger, Traits, Value, Weight, thin
from secateur.pruning.tracing.rules import (
    argument,
    fixed,
    moves,
    name_of,
    note_numbers,
    rule,
    rule_where,
    spread,
    takes_factor,
    tensors_in,
    varying,
)

_ELEMENTWISE = {
    *("hardswish", "hardsigmoid", "hardtanh", "relu6", "mish", "silu", "gelu", "elu", "selu"),
    *("celu", "leaky_relu", "threshold", "softplus", "softshrink", "hardshrink", "prelu"),
    *("_prelu_kernel", "logit", "erf", "glu_jvp", "masked_fill", "where", "rsub", "clamp"),
    *("nan_to_num", "bernoulli", "round", "fake_quantize_per_tensor_affine"),
}


@rule("full", "full_like", "new_full", "scalar_tensor", "empty", "empty_like", "new_empty")
@rule("ones", "ones_like", "new_ones", "rand_like", "randn_like", "rand", "randn", "arange")
def _constant(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """A constant; its value may depend on a width."""
    value = argument(func, args, kwargs, "fill_value")
    if value is not None or name_of(func) == "scalar_tensor":
        note_numbers(ledger, name_of(func), args[0] if value is None else value)
    ledger.label(result, fixed(result))


@rule("glu")
def _glu(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Gated linear unit: one half gates the other."""
    labels = ledger.labels(args[0])
    first, second = labels.chunk(2, argument(func, args, kwargs, "dim"))
    spoken = f"glu at {ledger.where}"
    ledger.graph.couple(thin(labels)[0].numpy(), spoken)
    first_nodes, second_nodes = (each.numpy() for each in thin(first, [second]))
    ledger.graph.join(first_nodes, second_nodes, f"{spoken} meets channels that must stay")
    ledger.graph.tell(ledger.where, "gates one half with the other", first_nodes)
    ledger.graph.visits += [known(first_nodes), known(second_nodes)]
    ledger.label(result, first)


_VERBS = {"add": "adds", "sub": "subtracts", "mul": "multiplies", "div": "divides"}


@rule_where(lambda func: torch.Tag.pointwise in func.tags)
@rule_where(lambda func: name_of(func).rstrip("_") in _ELEMENTWISE)
@takes_factor
def _elementwise(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Join channels that are combined elementwise; a scalar does not join them."""
    name = name_of(func).rstrip("_")
    inputs = tensors_in(args, kwargs)
    in_place = name_of(func).endswith("_")
    if in_place and all(not t.ndim and isinstance(ledger.value(t), Weight) for t in inputs):
        return  # a batch-norm's count of batches
    if not _note_scale(ledger, name, args, inputs):
        note_numbers(ledger, name, (args, kwargs))
    traits = Traits(zero=_makes_zero(ledger, func, args, kwargs))
    traits = replace(traits, factor=passed_on(ledger, name, args, kwargs))
    if name == "prelu" and inputs[1].numel() > 1:  # its weights are along dimension 1
        weights = inputs[1].view(1, -1, *[1] * (inputs[0].ndim - 2))
        ledger.label(weights, ledger.labels(inputs[1]).view(weights.shape))
        inputs[1] = weights
    (first, *_) = outputs = tensors_in(result)
    labels = meet(
        ledger, inputs, first.shape, f"{name} at {ledger.where}", _VERBS.get(name, "joins")
    )
    for tensor in outputs:
        writes = any(tensor is each for each in inputs)
        for alias in ledger.aliases(tensor) if writes else ():
            before = ledger.traits(alias)
            zero = before.zero and traits.zero
            ledger.carry(alias, ledger.value(alias), Traits(zero, factor=before.factor))
        ledger.label(tensor, labels, traits)


def _note_scale(ledger: Ledger, name: str, args: tuple[Any, ...], inputs: list[Tensor]) -> bool:
    """Record a number that directly multiplies a layer's output, which its weights can absorb."""
    numbers = [each for each in args if isinstance(each, (int, float))]
    if name not in ("mul", "div") or len(inputs) != 1 or len(numbers) != 1 or not numbers[0]:
        return False
    channels = ledger.traits(inputs[0]).linear
    if channels is None:
        return False
    number = float(numbers[0])
    ledger.graph.scales.append((number if name == "mul" else 1 / number, channels))
    return True


def _has_channels(value: Value) -> bool:
    """Whether a tensor has channels."""
    return isinstance(value, Weight) or bool((thin(value)[0] >= 0).any())


_TRIALS = (0.7, -1.3)


def _makes_zero(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether masked channels are zero in the result; runs the operation on zeros."""
    inputs = tensors_in(args, kwargs)
    produced = [_has_channels(ledger.value(t)) for t in inputs]
    zeros = {
        id(t) for t, labelled in zip(inputs, produced, strict=True)
        if labelled and ledger.traits(t).zero
    }  # fmt: skip
    if not zeros:
        return False
    for trial in _TRIALS:
        value = partial(_trial_value, zeros, trial)
        own, named = tree_map_only(Tensor, value, (args, kwargs))
        try:
            result = func(*own, **named)
        except Exception:  # the operation does not accept single values
            return False
        if any(bool(each.count_nonzero()) for each in tensors_in(result)):
            return False
    return True


def _trial_value(zeros: set[int], trial: float, tensor: Tensor) -> Tensor:
    value = 0.0 if id(tensor) in zeros else trial
    return torch.full((1,), value, dtype=torch.float32).to(tensor.dtype)


def meet(
    ledger: Ledger, inputs: list[Tensor], shape: Sequence[int], spoken: str, verb: str
) -> Tensor:
    """Join the labels of tensors broadcast to ``shape``; return the labels of the result."""
    grids = [t for t in inputs if _is_grid(ledger.value(t))]
    lines = [t for t in inputs if not _is_grid(ledger.value(t))]
    expanded = [ledger.labels(tensor).expand(shape) for tensor in lines]
    wide = {dimension for labels in expanded for dimension in varying(labels)}
    main_one = _main_dimension(expanded, wide)
    full: list[Tensor] = []
    numbers: list[Tensor] = []
    gates = False
    for tensor, labels in zip(lines, expanded, strict=True):
        labelled = bool((thin(labels)[0] != FIXED).any())
        if _is_broadcast(tensor, shape, main_one if labelled else wide):
            numbers += [] if labelled else [tensor]
            ledger.graph.protect(thin(labels)[0].numpy(), f"{spoken} spreads them over channels")
            gates |= not isinstance(ledger.value(tensor), Weight)
        else:
            full.append(labels)
    produced = [labels for labels in full if bool((thin(labels)[0] != FIXED).any())]
    nothing = torch.tensor(FIXED).expand(tuple(shape))
    main = min(produced, key=lambda labels: len(varying(labels)), default=nothing)  # join all
    for other in full:
        # A single value for a single channel would be broadcast over any number of channels.
        single = not wide and not bool((thin(other)[0] != FIXED).any())
        if other is not main and not single:
            first_nodes, second_nodes = (each.numpy() for each in thin(main, [other]))
            ledger.graph.join(first_nodes, second_nodes, f"{spoken} meets channels that must stay")
            ledger.graph.tell(ledger.where, f"{verb} them pair by pair", first_nodes)
    if gates:
        ledger.graph.gated.append(thin(main)[0].numpy().ravel())
    for tensor in grids:
        _meet_grid(ledger, tensor, main, spoken)
    lead = len(shape)
    along = {d for t in numbers for d in range(lead - t.ndim, lead) if _values(t, d - lead) > 1}
    return mixed(ledger, main, sorted(along), f"{spoken} meets numbers of their own")


def _main_dimension(every: Sequence[Tensor], wide: set[int]) -> set[int]:
    """The dimension of channels, if labels differ along several, as those of added tokens do."""
    if len(wide) < 2:
        return wide
    thinned = [thin(labels)[0] for labels in every]
    return {max(wide, key=lambda d: (max(distinct(t, d) / t.shape[d] for t in thinned), d))}


def _is_grid(value: Value) -> bool:
    """Whether a tensor is a weight with more than one axis."""
    return isinstance(value, Weight) and sum(size > 1 for size in value.shape) > 1


def _is_broadcast(tensor: Tensor, shape: Sequence[int], wide: set[int]) -> bool:
    """Whether a tensor has one value along a dimension, or is expanded along it."""
    lead = len(shape) - tensor.ndim
    return any(d < lead or (_values(tensor, d - lead) == 1 and shape[d] > 1) for d in wide)


def _values(tensor: Tensor, dimension: int) -> int:
    """Number of different values that a tensor can have along a dimension."""
    return tensor.shape[dimension] if tensor.stride(dimension) else 1


def _meet_grid(ledger: Ledger, tensor: Tensor, main: Tensor, spoken: str) -> None:
    """Combine a weight of several axes, one of which may be along the channels."""
    weight = ledger.value(tensor)
    assert isinstance(weight, Weight)
    lead = main.ndim - tensor.ndim
    wide = [d for d in varying(main) if d >= lead and tensor.shape[d - lead] > 1]
    if not wide or None in (weight.axes[d - lead] for d in wide):
        ledger.labels(tensor)  # protects it
        ledger.graph.protect(thin(main)[0].numpy(), f"{spoken} meets weights of several axes")
        return
    (thinned,) = thin(main)
    along = max(wide, key=lambda d: (distinct(thinned, d) / thinned.shape[d], d))
    nodes = spread(ledger.nodes(weight, along - lead), along, thinned)
    ledger.graph.join(nodes.numpy(), thinned.numpy(), f"{spoken} meets fixed weights")


def distinct(labels: Tensor, dimension: int) -> int:
    """Number of distinct labels along a dimension, at the end of the others."""
    return len(labels.movedim(dimension, -1)[(-1,) * (labels.ndim - 1)].unique())


# ---- operations on each plane of pixels

_PLANES = re.compile(
    r"(max_pool|avg_pool|adaptive_avg_pool|adaptive_max_pool|_adaptive_avg_pool|lp_pool|upsample_"
    r"\w*|_upsample_\w*|reflection_pad|replication_pad|fractional_max_pool)([123])d"
)


@rule_where(lambda func: _PLANES.match(name_of(func)) is not None)
def _plane(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Each plane depends on pixels of its own channel; channels that share a plane are joined."""
    name = name_of(func)
    match = _PLANES.match(name)
    assert match is not None
    pixels = int(match[2])
    note_numbers(ledger, name, args[1:])
    labels = ledger.labels(args[0])
    first = labels.ndim - pixels
    mixed = [d for d in varying(labels) if d >= first]
    if mixed:
        (thinned,) = thin(labels)
        rows = thinned.flatten(0, first - 1).flatten(1) if first else thinned.flatten()[None]
        spoken = f"{name} at {ledger.where}"
        ledger.graph.join(rows[:, :1].numpy(), rows.numpy(), f"{spoken} mixes them with others")
        ledger.graph.tell(ledger.where, f"mixes them ({spoken})", thinned.numpy())
    index = tuple(slice(None) if d < first else slice(0, 1) for d in range(labels.ndim))
    traits = Traits(zero=ledger.traits(args[0]).zero)
    for tensor in tensors_in(result):
        ledger.label(tensor, labels[index].expand(tensor.shape), traits)


# ---- reductions along dimensions


_ADDS_UP = ("sum", "mean", "linalg_vector_norm", "norm")
_KEEPS_ZERO = (*_ADDS_UP, "amax", "amin", "max", "min", "prod", "var", "std")


@rule("amax", "amin")
@moves
def _extreme(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """An extreme over pixels is proportional to weights whose scales are positive, as a move is."""
    channels = ledger.traits(args[0]).linear
    ledger.close(args[0])
    _reduce(ledger, func, args, kwargs, result)
    traits = ledger.traits(result)
    labels = ledger.labels(result)
    if channels is None or len(known(thin(labels)[0].numpy())) < len(channels):
        ledger.use(args[0])
    else:
        ledger.carry(result, labels, replace(traits, linear=channels))


@rule("mean", "sum", "var", "std", "linalg_vector_norm", "norm", "logsumexp")
@rule("prod", "max", "min", "var_mean", "std_mean")
def _reduce(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Join channels that are reduced together, unless masked channels add zero."""
    if len(tensors_in(args, kwargs)) > 1:  # elementwise maximum of two tensors
        _elementwise(ledger, func, args, kwargs, result)
        return
    labels = ledger.labels(args[0])
    dims = argument(func, args, kwargs, "dim")
    if isinstance(dims, int):
        dims = [dims]
    dims = sorted({d % labels.ndim for d in dims} if dims else range(labels.ndim))
    name = name_of(func)
    traits = ledger.traits(args[0])
    wide = [d for d in varying(labels) if d in dims]
    if name in _ADDS_UP and traits.zero and wide and wide == varying(labels):
        factor = None
        if name == "mean":
            count = math.prod(labels.shape[d] for d in wide)
            why = f"mean over channels at {ledger.where} counts them"
            factor = Factor(count, -1, known(thin(labels)[0].numpy()), why)
        ledger.graph.tell(ledger.where, f"adds them up ({name})", thin(labels)[0].numpy())
        for tensor in tensors_in(result):
            ledger.label(tensor, fixed(tensor), Traits(factor=factor))
        return
    where = ledger.where
    join = partial(mixed, ledger, labels, dims, f"{name} at {where}", where)
    for dimension in reversed(dims):
        labels = labels.narrow(dimension, 0, 1)
        if not argument(func, args, kwargs, "keepdim"):
            labels = labels.squeeze(dimension)
    for tensor in tensors_in(result):
        ledger.label(tensor, labels, Traits(zero=traits.zero and name in _KEEPS_ZERO))
        ledger.once_read(tensor, join)  # the averaged weights of an attention are rarely read


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Each element depends on all elements along one dimension."""
    labels = ledger.labels(args[0])
    dimension = argument(func, args, kwargs, "dim") % labels.ndim
    ledger.label(result, mixed(ledger, labels, [dimension], f"softmax at {ledger.where}"))


def mixed(
    ledger: Ledger, labels: Tensor, dims: Sequence[int], spoken: str, where: str | None = None
) -> Tensor:
    """Join all labels along ``dims`` with one another."""
    wide = varying(labels)
    for dimension in dims:
        if dimension in wide:
            (thinned,) = thin(labels)
            first = thinned.narrow(dimension, 0, 1)
            ledger.graph.join(
                first.numpy(), thinned.numpy(), f"{spoken} mixes them with channels that must stay"
            )
            ledger.graph.tell(where or ledger.where, f"mixes them all ({spoken})", thinned.numpy())
    return labels
