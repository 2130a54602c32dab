"""Which channels can be taken out, and what must go with them, read off the traced network.

A convolution's output channels can be removed where they flow only through layers that keep a zero
channel zero into layers that read it. A depthwise convolution or a batch-norm on the way loses the
same channels. Where they reach anything else (an addition, a concatenation, the output) the
convolution is protected, and the reason is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from secateur.pruning.trace import Protection, Trace, shape_of, trace

_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
)
"""Elementwise, and zero at zero. Exact types: a subclass may compute anything."""

_POOLS: tuple[type[nn.Module], ...] = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)

_FUNCTIONS = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh),
    *(F.dropout, F.dropout2d, torch.relu, torch.tanh),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d),
}
_METHODS = {"relu", "relu_", "tanh", "tanh_", "contiguous"}

_RECTIFIERS = {nn.ReLU, F.relu, torch.relu, "relu", "relu_"}
_NOTHING = {nn.Identity, nn.Dropout, F.dropout}
"""What may stand between two linear layers whose dead neurons are looked for."""

_INHERITED = "depthwise: its channels are those of its input, which must stay"
_NOT_CALLED = "the traced network does not call it as a layer"


@dataclass(frozen=True)
class Consumer:
    """A layer that reads a group's channels.

    Attributes:
        module: Name of a Conv2d or Linear.
        repeat: Adjacent inputs per channel: 1, or after flattening the elements of one map.
    """

    module: str
    repeat: int = 1


@dataclass(frozen=True)
class Group:
    """Channels of one convolution, and every layer that loses or stops reading them.

    For example ``conv(3, 8) -> bn(8) -> relu -> conv(8, 4)`` makes one group of 8 channels: its
    producer is the first convolution, its norm the batch-norm, its consumer the second.

    Attributes:
        producer: Name of the Conv2d whose filters make the channels; also the group's name.
        channels: How many.
        norms: BatchNorm2d layers that scale them.
        depthwise: Depthwise convolutions that filter each of them.
        consumers: Layers that read them.
    """

    producer: str
    channels: int
    norms: tuple[str, ...]
    depthwise: tuple[str, ...]
    consumers: tuple[Consumer, ...]

    @property
    def name(self) -> str:
        """What masks, fractions and scans call it."""
        return self.producer

    @property
    def owners(self) -> tuple[str, ...]:
        """Layers whose parameters' first axis is the channels: those that lose them."""
        return (self.producer, *self.norms, *self.depthwise)

    def __str__(self) -> str:
        """Say layer by layer why it belongs to the group."""
        lines = [f"{self.producer}: makes {self.channels} channels"]
        lines += [f"  {name}: normalizes each of them" for name in self.norms]
        lines += [f"  {name}: filters each of them on its own" for name in self.depthwise]
        for consumer in self.consumers:
            each = "an input each" if consumer.repeat == 1 else f"{consumer.repeat} inputs each"
            lines.append(f"  {consumer.module}: reads them, {each}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Feed:
    """A linear layer that alone reads another's neurons.

    Attributes:
        module: Name of the reading Linear.
        rectified: Whether a ReLU stands between.
    """

    module: str
    rectified: bool


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer, pruned by single weights.

    Attributes:
        name: Its module's name.
        feeds: The only layer that reads it, where that is a linear one; its dead neurons can go.
    """

    name: str
    feeds: Feed | None = None


@dataclass(frozen=True)
class Protected:
    """A layer whose outputs must stay, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Prunable:
    """All that may be pruned in a network, and what may not; in the order of the network."""

    groups: tuple[Group, ...]
    linears: tuple[LinearLayer, ...]
    protected: tuple[Protected, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups, then of the linear layers."""
        return (*(group.name for group in self.groups), *(layer.name for layer in self.linears))


def find_prunable(model: nn.Module, example_input: Tensor) -> Prunable:
    """Find what can be pruned in ``model``, from its graph in inference mode.

    Args:
        model: Any network of plain torch modules; left as it is.
        example_input: One batch of the shape to run on; only its shape and dtype count.

    Raises:
        NetworkError: torch.fx cannot trace the network, or it does not run on the input's shape.
    """
    traced = trace(model, example_input)
    groups: list[Group] = []
    linears: list[LinearLayer] = []
    protected: dict[str, str] = {}
    for node in traced.calls():
        name, layer = str(node.target), traced.module(node)
        try:
            if isinstance(layer, nn.Linear):
                traced.require_plain(name, nn.Linear)
                linears.append(LinearLayer(name, _feed(traced, node)))
            elif isinstance(layer, nn.Conv2d) and not _is_depthwise(layer):
                groups.append(_group(traced, node))
        except Protection as reason:
            protected[name] = str(reason)
    found = {name for group in groups for name in group.owners}
    found |= {linear.name for linear in linears}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and name not in found:
            why = _INHERITED if traced.called[name] else _NOT_CALLED
            protected.setdefault(name, why)
    names = [name for name, _ in model.named_modules()]
    return Prunable(
        groups=tuple(groups),
        linears=tuple(linears),
        protected=tuple(Protected(n, protected[n]) for n in names if n in protected),
    )


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return 1 < layer.groups == layer.in_channels == layer.out_channels


def _group(traced: Trace, producer: fx.Node) -> Group:
    name, layer = str(producer.target), traced.module(producer)
    traced.require_plain(name, nn.Conv2d)
    assert isinstance(layer, nn.Conv2d)
    if layer.groups != 1:
        raise Protection(f"its {layer.groups} groups are not single channels")
    norms: list[str] = []
    depthwise: list[str] = []
    consumers: list[Consumer] = []
    todo = [producer]
    while todo:
        node = todo.pop(0)
        if not node.users:
            raise Protection(f"output of {node.name} is not used")
        for user in node.users:
            reader = _consumer(traced, node, user, layer.out_channels)
            if reader is not None:
                consumers.append(reader)
                continue
            kind = _member(traced, node, user)
            if kind is nn.BatchNorm2d:
                norms.append(str(user.target))
            elif kind is nn.Conv2d:
                depthwise.append(str(user.target))
            elif not _passes(traced, node, user):
                raise Protection(f"output reaches {_spoken(traced, user)}")
            todo.append(user)
    return Group(name, layer.out_channels, tuple(norms), tuple(depthwise), tuple(consumers))


def _consumer(traced: Trace, node: fx.Node, user: fx.Node, channels: int) -> Consumer | None:
    """The layer that reads the channels at ``user``, if one does there."""
    layer, shape = traced.module(user), shape_of(node)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        traced.require_plain(str(user.target), nn.Conv2d)
        return Consumer(str(user.target))
    if isinstance(layer, nn.Linear) and len(shape) == 2:
        traced.require_plain(str(user.target), nn.Linear)
        return Consumer(str(user.target), shape[1] // channels)
    return None


def _member(traced: Trace, node: fx.Node, user: fx.Node) -> type[nn.Module] | None:
    """Type of the layer at ``user``, where it has parameters of its own for each channel."""
    layer = traced.module(user)
    if isinstance(layer, nn.BatchNorm2d):
        traced.require_plain(str(user.target), nn.BatchNorm2d)
        if not layer.affine:
            raise Protection(f"{user.target} normalizes without a scale that could be zero")
        return nn.BatchNorm2d
    if isinstance(layer, nn.Conv2d) and _is_depthwise(layer):
        traced.require_plain(str(user.target), nn.Conv2d)
        return nn.Conv2d
    return None


def _passes(traced: Trace, node: fx.Node, user: fx.Node) -> bool:
    """Whether ``user`` keeps the channels apart, in order, and zero where they are zero."""
    layer, rank = traced.module(user), len(shape_of(node))
    if layer is not None:
        if type(layer) is nn.Flatten:
            return _flattens(rank, layer.start_dim, layer.end_dim)
        if type(layer) is nn.Hardtanh:
            return layer.min_val <= 0 <= layer.max_val
        return type(layer) in (*_ACTIVATIONS, *_POOLS)
    if user.target in (torch.flatten, "flatten"):
        start = _argument(user, 1, "start_dim", 0)
        return _flattens(rank, start, _argument(user, 2, "end_dim", -1))
    if user.target in (torch.mean, "mean"):
        axes = _argument(user, 1, "dim", ())
        axes = axes if isinstance(axes, (list, tuple)) else [axes]
        return rank == 4 and {axis % rank for axis in axes} == {2, 3}
    return (user.op == "call_function" and user.target in _FUNCTIONS) or (
        user.op == "call_method" and user.target in _METHODS
    )


def _flattens(rank: int, start: int, end: int) -> bool:
    return start % rank == 1 and end % rank == rank - 1


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _feed(traced: Trace, node: fx.Node) -> Feed | None:
    """The linear layer that alone reads ``node``, through ReLU and dropout only."""
    rectified = False
    for user in _only_users(node):
        layer = traced.module(user)
        if type(layer) is nn.Linear and traced.called[str(user.target)] == 1:
            return None if str(user.target) in traced.tied else Feed(str(user.target), rectified)
        kind = user.target if layer is None else type(layer)
        if kind in _RECTIFIERS:
            rectified = True
        elif kind not in _NOTHING or (kind is F.dropout and _argument(user, 2, "training", True)):
            return None
    return None


def _only_users(node: fx.Node) -> Iterator[fx.Node]:
    """Follow ``node`` as long as one node alone reads it."""
    while len(node.users) == 1:
        (node,) = node.users
        yield node


def _spoken(traced: Trace, node: fx.Node) -> str:
    layer = traced.module(node)
    if node.op == "output":
        return "the network's output"
    if layer is not None:
        return f"{type(layer).__name__} at {node.target}"
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return f"{name} at node {node.name}"
