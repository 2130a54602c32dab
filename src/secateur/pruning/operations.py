"""What each operation of torch does to channels.

Five kinds of rule, by the names of ATen's operators: moving elements, acting on each element,
acting on each plane of pixels, mixing along dimensions, and layers with weights. An operation
without a rule is taken apart where torch knows how; else what it touches must stay, and it is
reported by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_iter

from secateur.pruning.labels import Ledger, Value, Weight, moved
from secateur.pruning.wiring import FIXED, INPUTS, Axis, Nodes

Rule = Callable[[Ledger, Any, tuple[Any, ...], dict[str, Any], Any], None]

_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def rule_of(func: Any) -> Rule | None:
    """The rule for an operator, or None where there is none."""
    name = _name(func)
    if name in _RULES:
        return _RULES[name]
    if torch.Tag.pointwise in func.tags or name.rstrip("_") in _ELEMENTWISE:
        return _elementwise
    return _plane if _PLANES.match(name) else None


def _name(func: Any) -> str:
    return func._schema.name.removeprefix("aten::")


def _tensors(*values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


def _argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[position] if position < len(args) else kwargs.get(name, argument.default_value)
    return None


def _fixed(tensor: Tensor) -> Tensor:
    return torch.tensor(FIXED).expand(tensor.shape)


# ---- labels


def _thin(labels: Tensor, also: Sequence[Tensor] = ()) -> list[Tensor]:
    """The same labels with one element where all of them have a stride of zero."""
    every = [labels, *also]
    index = tuple(
        slice(0, 1) if all(each.stride(d) == 0 for each in every) else slice(None)
        for d in range(labels.ndim)
    )
    return [each[index] for each in every]


def _varying(labels: Tensor) -> list[int]:
    """Dimensions along which labels differ."""
    (thin,) = _thin(labels)
    return [
        d
        for d in range(thin.ndim)
        if thin.shape[d] > 1 and not bool((thin == thin.narrow(d, 0, 1)).all())
    ]


def _vector(labels: Tensor, dimension: int) -> Nodes | None:
    """Labels along one dimension, or None where they differ along another."""
    if any(d != dimension for d in _varying(labels)):
        return None
    index = tuple(slice(None) if d == dimension else 0 for d in range(labels.ndim))
    return labels[index].numpy()


def _spread(nodes: Nodes, dimension: int, like: Tensor) -> Tensor:
    shape = [-1 if d == dimension else 1 for d in range(like.ndim)]
    return torch.from_numpy(nodes).view(shape).expand(like.shape)


# ---- not followed


def cannot_follow(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """What it reads must stay, what it gives is made by no channel, what it overwrites is lost."""
    name = _name(func)
    why = f"{name} at {ledger.where} cannot be followed"
    touched = False
    for position, value in enumerate((*args, *kwargs.values())):
        for tensor in _tensors(value):
            touched |= _keep(ledger, tensor, why)
            if position < len(args) and _writes(func, position):
                for alias in list(ledger.aliases(tensor)):
                    _keep(ledger, alias, why)
                    ledger.label(alias, _fixed(alias))
    if touched:
        ledger.wiring.unfollowed[f"{name} at {ledger.where}"] = None
    for tensor in _tensors(result):
        ledger.label(tensor, _fixed(tensor))


def _writes(func: Any, position: int) -> bool:
    info = func._schema.arguments[position].alias_info
    return info is not None and info.is_write


def _keep(ledger: Ledger, tensor: Tensor, why: str) -> bool:
    """Protect all of ``tensor``; whether there was something to protect."""
    value = ledger.value(tensor)
    if isinstance(value, Weight):
        for dimension, axis in enumerate(value.axes):
            if axis is not None:
                ledger.wiring.protect(ledger.nodes(value, dimension), why)
        return False
    (thin,) = _thin(value)
    ledger.wiring.protect(thin.numpy(), why)
    return bool((thin != FIXED).any())


# ---- moving elements

_SAME = (
    *("alias", "clone", "contiguous", "detach", "lift_fresh", "to", "_to_copy", "type_as"),
    *("dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "native_dropout"),
    *("alpha_dropout_", "feature_alpha_dropout"),
)
_VIEWS = ("view", "reshape", "_unsafe_view", "_reshape_copy")
_MOVES = (
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "numpy_T"),
    *("squeeze", "unsqueeze", "expand", "repeat", "repeat_interleave", "tile", "flatten"),
    *("unflatten", "slice", "select", "narrow", "split", "split_with_sizes", "unsafe_split"),
    *("unsafe_chunk", "chunk", "tensor_split", "unbind", "flip", "roll", "rot90", "stack"),
    *("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "diagonal"),
)


@_rule(*_SAME)
def _same(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    for tensor in _tensors(result):
        ledger.label(tensor, ledger.value(args[0]))


@_rule(*_MOVES, *_VIEWS)
def _move(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Do to the labels what was done to the data."""
    name = _name(func)
    if isinstance(args[0], Tensor) and isinstance(ledger.value(args[0]), Weight):
        weight = _moved_weight(ledger.value(args[0]), name, args, result)
        if weight is not None:
            ledger.label(result, weight)
            return
    before = [ledger.labels(tensor) for tensor in _tensors(args[0])]
    if name in _VIEWS:
        after = [before[0].reshape(result.shape)]
    else:
        source = before if isinstance(args[0], (list, tuple)) else before[0]
        after = _tensors(func(source, *args[1:], **kwargs))
    if len(before) == 1 and not _keeps_order(before[0], after):
        ledger.wiring.couple(_thin(before[0])[0].numpy(), f"{name} at {ledger.where}")
    for tensor, labels in zip(_tensors(result), after, strict=True):
        ledger.label(tensor, labels)


def _keeps_order(before: Tensor, after: list[Tensor]) -> bool:
    """Whether taking channels out before or after the move is the same, whichever they are."""
    held = _thin(before)[0]
    distinct = held.unique()
    if len(distinct) < 2:
        return True
    for labels in after:
        if len(_varying(labels)) > 1:
            return False
        ours = _thin(labels)[0]
        if len(ours.unique()) < len(distinct) or not torch.equal(_firsts(ours), _firsts(held)):
            return False
    return True


def _firsts(labels: Tensor) -> Tensor:
    """Distinct labels in order of appearance."""
    values, index = np.unique(labels.numpy(), return_index=True)
    return torch.from_numpy(values[np.argsort(index)])


def _moved_weight(value: Value, name: str, args: tuple[Any, ...], result: Any) -> Weight | None:
    """A weight whose axes were only reordered, or padded with ones; None for anything else."""
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
    long = [d for d, size in enumerate(weight.shape) if size > 1]
    if [weight.shape[d] for d in long] != [size for size in shape if size > 1]:
        return None
    rest = iter(long)
    return moved(weight, [next(rest) if size > 1 else None for size in shape])


@_rule("cat", "concat", "concatenate")
def _cat(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    parts = [ledger.labels(t) for t in _tensors(args[0]) if not (t.ndim == 1 and t.numel() == 0)]
    dimension = (_argument(func, args, kwargs, "dim") or 0) % result.ndim
    index = tuple(
        slice(0, 1) if d != dimension and all(p.stride(d) == 0 for p in parts) else slice(None)
        for d in range(result.ndim)
    )
    joined = torch.cat([part[index] for part in parts], dimension)
    ledger.label(result, joined.expand(result.shape))


@_rule("pad", "constant_pad_nd", "_pad_enum")
def _pad(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Padding of pixels spreads a channel; padding of channels adds some that are fixed."""
    labels = ledger.labels(args[0])
    amounts = list(args[1])
    varying = _varying(labels)
    name = _name(func)
    mode = _argument(func, args, kwargs, "mode") if name != "constant_pad_nd" else "constant"
    for pair in range(len(amounts) // 2):
        dimension = labels.ndim - 1 - pair
        before, after = amounts[2 * pair : 2 * pair + 2]
        if dimension in varying:
            if mode not in ("constant", 0):
                cannot_follow(ledger, func, args, kwargs, result)
                return
            rest = [0, 0] * pair
            labels = F.pad(labels, [*rest, before, after], value=FIXED)
            if before < 0 or after < 0:
                ledger.wiring.couple(labels.numpy(), f"pad at {ledger.where}")
        else:
            size = list(labels.shape)
            size[dimension] += before + after
            labels = labels.narrow(dimension, 0, 1).expand(size)
    ledger.label(result, labels)


# ---- acting on each element

_ELEMENTWISE = {
    *("hardswish", "hardsigmoid", "hardtanh", "relu6", "mish", "silu", "gelu", "elu", "selu"),
    *("celu", "leaky_relu", "threshold", "softplus", "softshrink", "hardshrink", "prelu"),
    *("_prelu_kernel", "logit", "erf", "glu_jvp", "masked_fill", "where", "rsub", "clamp"),
    *("nan_to_num", "bernoulli", "round", "fake_quantize_per_tensor_affine"),
}

_VERBS = {"add": "adds", "sub": "subtracts", "mul": "multiplies", "div": "divides"}


def _elementwise(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Channels that meet element by element become one; a value for all leaves them apart."""
    name = _name(func).rstrip("_")
    for number in tree_iter((args, kwargs)):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            ledger.wiring.scalars.append((name, float(number)))
    inputs = _tensors(args, kwargs)
    if name == "prelu" and inputs[1].numel() > 1:  # its weights lie along dimension 1
        weights = inputs[1].view(1, -1, *[1] * (inputs[0].ndim - 2))
        ledger.label(weights, ledger.labels(inputs[1]).view(weights.shape))
        inputs[1] = weights
    (first, *_) = outputs = _tensors(result)
    labels = _meet(ledger, inputs, first.shape, f"{name} at {ledger.where}", _VERBS.get(name, "joins"))
    for tensor in outputs:
        ledger.label(tensor, labels)


def _meet(
    ledger: Ledger, inputs: list[Tensor], shape: Sequence[int], spoken: str, verb: str
) -> Tensor:
    """Join the labels of tensors that are broadcast to ``shape``; return those of the outcome."""
    grids = [t for t in inputs if _is_grid(ledger.value(t))]
    lines = [t for t in inputs if not _is_grid(ledger.value(t))]
    whole = [ledger.labels(tensor).expand(shape) for tensor in lines]
    wide = {dimension for labels in whole for dimension in _varying(labels)}
    full: list[Tensor] = []
    gates = False
    for tensor, labels in zip(lines, whole, strict=True):
        if _is_broadcast(tensor, shape, wide):
            ledger.wiring.protect(_thin(labels)[0].numpy(), f"{spoken} spreads them over channels")
            gates |= not isinstance(ledger.value(tensor), Weight)
        else:
            full.append(labels)
    main = next((labels for labels in full if bool((_thin(labels)[0] != FIXED).any())), None)
    if main is None:
        main = torch.tensor(FIXED).expand(tuple(shape))
    for other in full:
        # One value, where there is one channel: it would be broadcast over any number of them.
        single = not wide and not bool((_thin(other)[0] != FIXED).any())
        if other is not main and not single:
            ours, theirs = (each.numpy() for each in _thin(main, [other]))
            ledger.wiring.join(ours, theirs, f"{spoken} meets channels that must stay")
            ledger.wiring.tell(ledger.where, f"{verb} them pair by pair", ours)
    if gates:
        ledger.wiring.gated.append(_thin(main)[0].numpy().ravel())
    for tensor in grids:
        _meet_grid(ledger, tensor, main, spoken)
    return main


def _is_grid(value: Value) -> bool:
    """Whether it is a weight with more than one axis."""
    return isinstance(value, Weight) and sum(size > 1 for size in value.shape) > 1


def _is_broadcast(tensor: Tensor, shape: Sequence[int], wide: set[int]) -> bool:
    lead = len(shape) - tensor.ndim
    return any(d < lead or (tensor.shape[d - lead] == 1 and shape[d] > 1) for d in wide)


def _meet_grid(ledger: Ledger, tensor: Tensor, main: Tensor, spoken: str) -> None:
    """Weights of several axes, one of which may lie along the channels."""
    weight = ledger.value(tensor)
    assert isinstance(weight, Weight)
    lead = main.ndim - tensor.ndim
    wide = [d for d in _varying(main) if d >= lead and tensor.shape[d - lead] > 1]
    line = _vector(main, wide[0]) if len(wide) == 1 else None
    if line is None:
        ledger.labels(tensor)  # protects it
        ledger.wiring.protect(_thin(main)[0].numpy(), f"{spoken} meets weights of several axes")
        return
    ledger.wiring.join(ledger.nodes(weight, wide[0] - lead), line, f"{spoken} meets fixed weights")


# ---- acting on each plane of pixels

_PLANES = re.compile(
    r"(max_pool|avg_pool|adaptive_avg_pool|adaptive_max_pool|_adaptive_avg_pool|lp_pool|upsample_"
    r"\w*|_upsample_\w*|reflection_pad|replication_pad|fractional_max_pool)([123])d"
)


def _plane(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Each channel's pixels give that channel's pixels."""
    name = _name(func)
    found = _PLANES.match(name)
    assert found is not None
    pixels = int(found[2])
    labels = ledger.labels(args[0])
    first = labels.ndim - pixels
    if any(d >= first for d in _varying(labels)):
        cannot_follow(ledger, func, args, kwargs, result)
        return
    index = tuple(slice(None) if d < first else slice(0, 1) for d in range(labels.ndim))
    for tensor in _tensors(result):
        ledger.label(tensor, labels[index].expand(tensor.shape))


# ---- mixing along dimensions


@_rule("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "logsumexp")
@_rule("prod", "max", "min", "var_mean", "std_mean")
def _reduce(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Channels that are reduced to one become one."""
    if len(_tensors(args, kwargs)) > 1:  # max of two tensors
        _elementwise(ledger, func, args, kwargs, result)
        return
    labels = ledger.labels(args[0])
    dims = _argument(func, args, kwargs, "dim")
    if isinstance(dims, int):
        dims = [dims]
    dims = sorted({d % labels.ndim for d in dims} if dims else range(labels.ndim))
    name = _name(func)
    labels = _mixed(ledger, labels, dims, f"{name} at {ledger.where}")
    for dimension in reversed(dims):
        labels = labels.narrow(dimension, 0, 1)
        if not _argument(func, args, kwargs, "keepdim"):
            labels = labels.squeeze(dimension)
    for tensor in _tensors(result):
        ledger.label(tensor, labels)


@_rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Each element depends on all along one dimension."""
    labels = ledger.labels(args[0])
    dimension = _argument(func, args, kwargs, "dim") % labels.ndim
    ledger.label(result, _mixed(ledger, labels, [dimension], f"softmax at {ledger.where}"))


def _mixed(ledger: Ledger, labels: Tensor, dims: Sequence[int], spoken: str) -> Tensor:
    """Join all labels along ``dims`` with one another."""
    varying = _varying(labels)
    for dimension in dims:
        if dimension in varying:
            (thin,) = _thin(labels)
            first = thin.narrow(dimension, 0, 1)
            ledger.wiring.join(
                first.numpy(), thin.numpy(), f"{spoken} mixes them with channels that must stay"
            )
            ledger.wiring.tell(ledger.where, f"mixes them all ({spoken})", thin.numpy())
    return labels


@_rule("layer_norm", "native_layer_norm", "rms_norm")
def _layer_norm(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Each element depends on all along the last dimensions."""
    labels = ledger.labels(args[0])
    dims = range(labels.ndim - len(args[1]), labels.ndim)
    for tensor in _tensors(args[2:], kwargs):
        labels = _meet(ledger, [args[0], tensor], labels.shape, f"norm at {ledger.where}", "scales")
    labels = _mixed(ledger, labels, dims, f"layer_norm at {ledger.where}")
    ledger.label(_tensors(result)[0], labels)


# ---- layers with weights


def _channels(ledger: Ledger, tensor: Tensor, dimension: int) -> Nodes | None:
    """Labels along the dimension of channels; protects all of them where there is no such thing."""
    labels = ledger.labels(tensor)
    found = _vector(labels, dimension % labels.ndim)
    if found is None:
        _keep(ledger, tensor, f"a layer at {ledger.where} does not find one channel in each place")
    return found


def _computed(ledger: Ledger, func: Any, args: tuple[Any, ...], result: Any) -> None:
    """A layer whose weights are no parameter: what it reads must stay."""
    why = f"the weights of {ledger.where} are computed"
    for tensor in _tensors(args):
        _keep(ledger, tensor, why)
    ledger.wiring.unfollowed[f"computed weights at {ledger.where}"] = None
    for tensor in _tensors(result):
        ledger.label(tensor, _fixed(tensor))


@_rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
@_rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    images, weights = args[:2]
    weight = ledger.value(weights)
    name = func._schema.name
    transposed = "transpose" in name or bool(_argument(func, args, kwargs, "transposed"))
    groups = _argument(func, args, kwargs, "groups")
    if not isinstance(weight, Weight) or None in weight.axes[:2]:
        _computed(ledger, func, args, result)
        return
    dimension = images.ndim - (weights.ndim - 1)
    given = _channels(ledger, images, dimension)
    if given is None:
        given = np.full(images.shape[dimension], FIXED)
    inside, outside = (0, 1) if transposed else (1, 0)
    # A depthwise convolution that shrank to one channel is still one.
    if groups == 1 and Axis(weight.name, INPUTS) not in ledger.wider:
        made = ledger.nodes(weight, outside)
        _read(ledger, weight, inside, given)
        _make(ledger, weight, outside, made)
    else:
        made = _grouped(ledger, weight, given, groups, transposed)
    _bias(ledger, _argument(func, args, kwargs, "bias"), made)
    ledger.label(result, _spread(made, dimension, result))


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


def _grouped(
    ledger: Ledger, weight: Weight, given: Nodes, groups: int, transposed: bool
) -> Nodes:
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
    if transposed:  # outputs of a group share one axis of the weight: its first input stands for them
        return np.repeat(made[:, 0], weight.shape[1])
    return makers


def _bias(ledger: Ledger, bias: Any, made: Nodes) -> None:
    if bias is None:
        return
    nodes = ledger.labels(bias).numpy()
    if len(nodes) == len(made):
        ledger.wiring.join(nodes, made, f"the bias of {ledger.where} must stay")


@_rule("linear")
def _linear(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    _dense(ledger, func, args, result, 1, 0, _argument(func, args, kwargs, "bias"))


@_rule("addmm")
def _addmm(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    _dense(ledger, func, args[1:], result, 0, 1, args[0])


@_rule("matmul", "mm")
def _matmul(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    if isinstance(ledger.value(args[1]), Weight) and args[1].ndim == 2:
        _dense(ledger, func, args, result, 0, 1, None)
    else:
        cannot_follow(ledger, func, args, kwargs, result)


def _dense(
    ledger: Ledger, func: Any, args: tuple[Any, ...], result: Any, inside: int, outside: int, bias: Any
) -> None:
    """``args[0]`` times the weight ``args[1]``, whose dimensions are ``inside`` and ``outside``."""
    weight = ledger.value(args[1])
    if not isinstance(weight, Weight) or None in weight.axes:
        _computed(ledger, func, args, result)
        return
    given = _channels(ledger, args[0], -1)
    if given is None:
        given = np.full(args[0].shape[-1], FIXED)
    made = ledger.nodes(weight, outside)
    _read(ledger, weight, inside, given)
    _make(ledger, weight, outside, made)
    _bias(ledger, bias, made)
    ledger.label(result, _spread(made, result.ndim - 1, result))


@_rule("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
@_rule("group_norm", "native_group_norm")
def _channel_norm(
    ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> None:
    """Scales and shifts each channel; a group norm mixes those of a group."""
    name = _name(func)
    given = _channels(ledger, args[0], 1)
    if given is None:
        given = np.full(args[0].shape[1], FIXED)
    what = "normalizes each on its own"
    if "group" in name:
        groups = _argument(func, args, kwargs, "num_groups" if name == "group_norm" else "group")
        rows = given.reshape(groups, -1)
        ledger.wiring.join(rows[:, :1], rows, f"{ledger.where} mixes them with channels that must stay")
        what = f"normalizes them in {groups} groups"
    ledger.wiring.tell(ledger.where, what, given)
    for tensor in _tensors(args[1:], kwargs):
        nodes = ledger.labels(tensor).numpy()
        if nodes.shape == given.shape:
            ledger.wiring.join(nodes, given, f"{ledger.where} normalizes channels that must stay")
    first, *rest = _tensors(result)
    ledger.label(first, _spread(given, 1, first))
    for tensor in rest:
        ledger.label(tensor, _fixed(tensor))
