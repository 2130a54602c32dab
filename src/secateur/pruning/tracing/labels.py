"""Labels and other facts about each tensor during a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.pruning.tracing.channel_graph import (
    FIXED,
    ZERO,
    Axis,
    ChannelGraph,
    Nodes,
    known,
)


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer, or a view of one that only moves or drops axes.

    Attributes:
        name: Its first name in the network.
        axes: For each dimension, its axis in the tensor, or None for an added dimension of size 1.
        shape: Shape of the view.
        size: Size of each axis of the tensor itself.
    """

    name: str
    axes: tuple[int | None, ...]
    shape: tuple[int, ...]
    size: tuple[int, ...]


Value = Tensor | Weight
"""Labels in the shape of a tensor (int64, with stride zero where equal), or a weight."""


@dataclass(frozen=True)
class Factor:
    """A factor of an entire tensor that depends on the number of channels.

    A mean over channels divides by their count. A parameter that multiplies the result can absorb
    the change; until then the factor is open.

    Attributes:
        count: Number of averaged channels.
        power: -1 if the tensor is divided by the count, 1 if it is multiplied by it.
        nodes: The channels.
        why: Reason for protection if nothing absorbs the factor.
    """

    count: int
    power: int
    nodes: Nodes
    why: str


@dataclass(frozen=True, eq=False)
class Pair:
    """Second labels of an outer product, whose elements each belong to a channel of both operands.

    A product that sums over the channels of one operand leaves those of the other, as in linear
    attention. All other operations join both.

    Attributes:
        labels: Labels in the shape of the tensor.
        zero: Whether elements of its masked channels are zero.
    """

    labels: Tensor
    zero: bool


@dataclass(frozen=True)
class Traits:
    """Properties of a tensor under masks and scales of weights.

    Attributes:
        zero: Whether elements of masked channels are zero.
        linear: Channels to whose weights and biases the tensor is proportional: it is a layer's
            output and was only moved, or reduced to extremes.
        factor: Open factor of the tensor.
        pair: Second labels, if it is an outer product.
    """

    zero: bool = False
    linear: Nodes | None = None
    factor: Factor | None = None
    pair: Pair | None = None


PLAIN = Traits()


def thin(labels: Tensor, also: Sequence[Tensor] = ()) -> list[Tensor]:
    """Labels reduced to one element along dimensions of stride zero in all tensors."""
    every = [labels, *also]
    strides = zip(*(each.stride() for each in every), strict=True)
    index = tuple(slice(None) if any(own) else _ONE for own in strides)
    return every if _ONE not in index else [each[index] for each in every]


_ONE = slice(0, 1)


def moved(weight: Weight, order: list[int | None]) -> Weight:
    """``weight`` with its dimensions in another order, None for an added one of size 1."""
    return replace(
        weight,
        axes=tuple(None if d is None else weight.axes[d] for d in order),
        shape=tuple(1 if d is None else weight.shape[d] for d in order),
    )


class Ledger:
    """Labels of all tensors of a run.

    Args:
        graph: Receives the dependencies.
        weights: Parameters and buffers by ``id``.
        parameters: Those that are parameters, which masks can zero.
        larger: Graph of the large network if this one is smaller, else None.
        stack: Names of the running modules, innermost last.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        weights: dict[int, Weight],
        parameters: Collection[str],
        larger: ChannelGraph | None,
        stack: Sequence[str],
    ) -> None:
        self.graph = graph
        self._weights, self._parameters = weights, parameters
        self.wider: Collection[Axis] = {} if larger is None else larger.sizes
        self.grouped: Collection[str] = () if larger is None else larger.grouped
        self._stack = stack
        self._values: dict[int, tuple[Tensor, Value, Traits]] = {}  # keeps ids unique
        self._stored: dict[int, list[Tensor]] = {}
        self._data: dict[int, tuple[Tensor, Tensor]] = {}
        self._later: dict[int, Callable[[], object]] = {}

    @property
    def where(self) -> str:
        """The innermost running module."""
        return self._stack[-1]

    def value(self, tensor: Tensor) -> Value:
        """Labels of ``tensor``, or its weight."""
        if id(tensor) in self._weights:
            return self._weights[id(tensor)]
        entry = self._entry(tensor)
        return torch.tensor(FIXED).expand(tensor.shape) if entry is None else entry[1]

    def traits(self, tensor: Tensor) -> Traits:
        """Traits of ``tensor``."""
        if id(tensor) in self._weights:
            return Traits(zero=self._weights[id(tensor)].name in self._parameters)
        entry = self._entry(tensor)
        return PLAIN if entry is None else entry[2]

    def knows(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is a weight or the result of an operation."""
        return id(tensor) in self._weights or self._entry(tensor) is not None

    def _entry(self, tensor: Tensor) -> tuple[Tensor, Value, Traits] | None:
        """The entry of a tensor, or of another object with the same view."""
        if id(tensor) in self._values:
            return self._values[id(tensor)]
        for other in self._stored.get(_storage(tensor), ()):
            same = other.shape == tensor.shape and other.stride() == tensor.stride()
            if same and other.storage_offset() == tensor.storage_offset():
                return self._values[id(other)]
        return None

    def carry(self, tensor: Tensor, value: Value, traits: Traits = PLAIN) -> None:
        """Set the labels of a tensor whose elements were only moved."""
        assert tuple(tensor.shape) == tuple(value.shape), (tensor.shape, value.shape)
        if id(tensor) not in self._values:
            self._stored.setdefault(_storage(tensor), []).append(tensor)
        self._values[id(tensor)] = (tensor, value, traits)

    def label(self, tensor: Tensor, value: Value, traits: Traits = PLAIN) -> None:
        """Set the labels of a computed tensor, and record the visit of its channels."""
        self.carry(tensor, value, traits)
        if isinstance(value, Tensor):
            self.graph.visits.append(known(thin(value)[0].numpy()))

    def number(self, name: str, value: float) -> None:
        """Record a number with which the operation ``name`` computes."""
        self.graph.scalars.append((name, float(value), self.where))

    def aliases(self, tensor: Tensor) -> Iterator[Tensor]:
        """All labeled tensors that share memory with ``tensor``."""
        yield from list(self._stored.get(_storage(tensor), ()))

    def use(self, tensor: Tensor) -> None:
        """Record that a computation reads ``tensor``, and its channels if it is a layer's."""
        weight = self._weights.get(id(tensor)) or self.value(tensor)
        if isinstance(weight, Weight):
            long = [d for d, size in enumerate(weight.shape) if size > 1]
            if len(long) == 1 and (axis := weight.axes[long[0]]) is not None:
                self.graph.weight_uses.append(Axis(weight.name, axis))
            return
        channels = self.traits(tensor).linear
        if channels is not None:
            self.graph.uses.append(channels)

    def once_read(self, tensor: Tensor, action: Callable[[], object]) -> None:
        """Call ``action`` when an operation reads ``tensor``, or the network returns it."""
        self._later[_storage(tensor)] = action

    def read(self, tensor: Tensor) -> None:
        """Call the action of ``tensor``, which an operation reads."""
        if self._later:
            action = self._later.pop(_storage(tensor), None)
            if action is not None:
                action()

    def close(self, tensor: Tensor) -> None:
        """Protect the channels of an open factor of ``tensor`` that nothing absorbed."""
        factor = self.traits(tensor).factor
        if factor is not None:
            self.graph.protect(factor.nodes, factor.why)

    def keep_data(self, tensor: Tensor, data: Tensor) -> None:
        """Store the values of a tensor that runs without data, such as an index."""
        self._data[id(tensor)] = (tensor, data)

    def data(self, tensor: Tensor) -> Tensor | None:
        """Stored values of a tensor, or None."""
        if not tensor.is_meta:
            return tensor
        return self._data[id(tensor)][1] if id(tensor) in self._data else None

    def nodes(self, weight: Weight, dimension: int) -> Nodes:
        """Nodes along one dimension of ``weight``."""
        axis = weight.axes[dimension]
        assert axis is not None
        return self.graph.nodes(weight.name, axis, weight.size[axis])

    def _short(self, weight: Weight) -> list[int]:
        """The channel dimension of a weight with a single element, or None."""
        if len(weight.shape) == 1:
            return [0]
        return [
            d
            for d, axis in enumerate(weight.axes)
            if axis is not None and Axis(weight.name, axis) in self.wider
        ]

    def labels(self, tensor: Tensor) -> Tensor:
        """Labels of ``tensor``; those of a weight with one axis longer than 1 are its nodes.

        Other weights are protected, because they enter a computation as data.
        """
        value = self.raw(tensor)
        return torch.where(value == ZERO, FIXED, value) if _has_zero(value) else value

    def raw(self, tensor: Tensor) -> Tensor:
        """As :meth:`labels`, with ZERO for zeros that belong to no channel."""
        value = self.value(tensor)
        if isinstance(value, Tensor):
            return value
        axes = zip(value.shape, value.axes, strict=True)
        long = [d for d, (size, axis) in enumerate(axes) if size > 1 and axis is not None]
        long = long or self._short(value)
        if len(long) == 1:
            shape = [-1 if d == long[0] else 1 for d in range(len(value.shape))]
            nodes = torch.from_numpy(self.nodes(value, long[0]))
            return nodes.view(shape).expand(value.shape)
        for dimension in long:
            why = f"{value.name} enters a computation at {self.where}"
            self.graph.protect(self.nodes(value, dimension), why)
        return torch.tensor(FIXED).expand(value.shape)


def _has_zero(labels: Tensor) -> bool:
    return bool((thin(labels)[0] == ZERO).any())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
