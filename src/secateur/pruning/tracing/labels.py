"""What is known of each tensor while a network runs: its elements' labels, or whose weight."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.pruning.tracing.channel_graph import FIXED, Axis, Nodes, Wiring, known


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer, or a view of one that only moves or drops axes.

    Attributes:
        name: Its first name in the network.
        axes: For each dimension, its axis in the tensor, or None for one of size 1 that was added.
        shape: Of the view.
        size: Of each axis of the tensor itself.
    """

    name: str
    axes: tuple[int | None, ...]
    shape: tuple[int, ...]
    size: tuple[int, ...]


Value = Tensor | Weight
"""Labels in the shape of a tensor (int64, strides of zero where one is spread), or weights."""


def thin(labels: Tensor, also: Sequence[Tensor] = ()) -> list[Tensor]:
    """The same labels with one element where all of them have a stride of zero."""
    every = [labels, *also]
    index = tuple(
        slice(0, 1) if all(each.stride(d) == 0 for each in every) else slice(None)
        for d in range(labels.ndim)
    )
    return [each[index] for each in every]


def moved(weight: Weight, order: list[int | None]) -> Weight:
    """``weight`` with its dimensions in another order, None for an added one of size 1."""
    return replace(
        weight,
        axes=tuple(None if d is None else weight.axes[d] for d in order),
        shape=tuple(1 if d is None else weight.shape[d] for d in order),
    )


class Ledger:
    """Labels of every tensor so far.

    Args:
        wiring: What is learnt is entered here.
        weights: Parameters and buffers by ``id``.
        wider: Axes of channels of the same network before it became smaller.
        stack: Names of the modules that are running, the innermost last.
    """

    def __init__(
        self,
        wiring: Wiring,
        weights: dict[int, Weight],
        wider: Collection[Axis],
        stack: Sequence[str],
    ) -> None:
        self.wiring = wiring
        self._weights, self.wider, self._stack = weights, wider, stack
        self._values: dict[int, tuple[Tensor, Value]] = {}  # keeps tensors alive, so ids are unique

    @property
    def where(self) -> str:
        """The innermost module that is running."""
        return self._stack[-1]

    def value(self, tensor: Tensor) -> Value:
        """Labels of ``tensor``, or the weight it is."""
        if id(tensor) in self._weights:
            return self._weights[id(tensor)]
        if id(tensor) in self._values:
            return self._values[id(tensor)][1]
        return torch.tensor(FIXED).expand(tensor.shape)

    def carry(self, tensor: Tensor, value: Value) -> None:
        """Say what ``tensor`` is from now on, where its elements have only moved."""
        assert tuple(tensor.shape) == tuple(value.shape), (tensor.shape, value.shape)
        self._values[id(tensor)] = (tensor, value)

    def label(self, tensor: Tensor, value: Value) -> None:
        """Say what ``tensor`` is from now on, where something was computed: channels visit it."""
        self.carry(tensor, value)
        if isinstance(value, Tensor):
            self.wiring.visits.append(known(thin(value)[0].numpy()))

    def aliases(self, tensor: Tensor) -> Iterator[Tensor]:
        """Every labelled tensor that shares memory with ``tensor``."""
        home = tensor.untyped_storage()._cdata
        for other, _ in list(self._values.values()):
            if other.untyped_storage()._cdata == home:
                yield other

    def nodes(self, weight: Weight, dimension: int) -> Nodes:
        """Nodes along one dimension of ``weight``."""
        axis = weight.axes[dimension]
        assert axis is not None
        return self.wiring.nodes(weight.name, axis, weight.size[axis])

    def _short(self, weight: Weight) -> list[int]:
        """Which dimension of a weight with a single element is one of channels, if one is."""
        if len(weight.shape) == 1:
            return [0]
        return [
            d
            for d, axis in enumerate(weight.axes)
            if axis is not None and Axis(weight.name, axis) in self.wider
        ]

    def labels(self, tensor: Tensor) -> Tensor:
        """Labels of ``tensor``; a weight with one axis that is longer than 1 is made of its nodes.

        Another weight is a computation's input here, so that nothing may be taken out of it.
        """
        value = self.value(tensor)
        if isinstance(value, Tensor):
            return value
        long = [d for d, size in enumerate(value.shape) if size > 1] or self._short(value)
        if len(long) == 1:
            shape = [-1 if d == long[0] else 1 for d in range(len(value.shape))]
            nodes = torch.from_numpy(self.nodes(value, long[0]))
            return nodes.view(shape).expand(value.shape)
        for dimension in long:
            why = f"{value.name} enters a computation at {self.where}"
            self.wiring.protect(self.nodes(value, dimension), why)
        return torch.tensor(FIXED).expand(value.shape)
