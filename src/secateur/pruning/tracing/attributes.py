"""Numbers that hold widths: module attributes such as ``num_heads``, and sizes of tensors.

If an attribute is the size of a dimension in a reshape, a split or a slice, the smaller network
needs another value. If a size of one tensor is used for another, both must shrink alike, as in
``reshape(B, N, heads, C // heads)`` with ``C`` of the input. The numbers are marked to trace where
they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from secateur.pruning.tracing.channel_graph import Home, Multiple, Width, known
from secateur.pruning.tracing.labels import Ledger, Weight, thin
from secateur.pruning.tracing.rules import tensors_in, varying


@dataclass(frozen=True, eq=False)
class Extent:
    """The size of one dimension of a tensor with channels."""

    labels: Tensor
    dimension: int


class MarkedInt(int):
    """An attribute or size, a multiple of it, or a difference, marked with its origin.

    Attributes:
        home: Origin.
        factor: Multiple of the attribute.
        less: What is subtracted.
    """

    home: Home | Extent
    factor: float
    less: tuple[Multiple, ...]

    def __new__(
        cls, value: int, home: Home | Extent, factor: float = 1.0, less: tuple[Multiple, ...] = ()
    ) -> MarkedInt:
        number = super().__new__(cls, value)
        number.home, number.factor, number.less = home, factor, less
        return number

    def _times(self, value: int, ratio: float) -> MarkedInt:
        less = tuple(each._replace(factor=each.factor * ratio) for each in self.less)
        return MarkedInt(value, self.home, self.factor * ratio, less)

    def __mul__(self, other: int) -> int:
        product = int(self) * int(other)
        if isinstance(other, MarkedInt) and isinstance(self.home, Extent):
            return other * int(self)
        size = isinstance(other, MarkedInt) and isinstance(other.home, Extent)
        return self._times(product, int(other)) if type(other) is int or size else product

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> int:
        quotient = int(self) // int(other)
        exact = isinstance(other, int) and quotient * int(other) == int(self)
        return self._times(quotient, 1 / int(other)) if exact else quotient

    def __sub__(self, other: int) -> int:
        difference = int(self) - int(other)
        if not isinstance(other, MarkedInt) or other.less:
            return difference
        if isinstance(self.home, Extent) or isinstance(other.home, Extent):
            return difference
        value = round(int(other) / other.factor)
        less = (*self.less, Multiple(other.home, other.factor, value))
        return MarkedInt(difference, self.home, self.factor, less)

    def __deepcopy__(self, memo: dict[int, Any]) -> MarkedInt:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def mark_widths(probe: nn.Module) -> None:
    """Mark every integer above 1 in attributes of modules defined by the network."""
    for name, module in probe.named_modules():
        if type(module).__module__.startswith("torch.nn"):
            continue
        for attribute, value in list(vars(module).items()):
            if type(value) is int and value > 1:
                vars(module)[attribute] = MarkedInt(value, Home(name, attribute))
            elif type(value) in (list, tuple):
                vars(module)[attribute] = type(value)(
                    MarkedInt(each, Home(name, attribute, position))
                    if type(each) is int and each > 1
                    else each
                    for position, each in enumerate(value)
                )


class WatchWidths(TorchFunctionMode):
    """Records each marked number that is the size of a dimension of channels."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func == _SHAPE:
            return self._mark(args[0], result)
        if func is Tensor.size:
            dimension = kwargs.get("dim", args[1] if len(args) > 1 else None)
            marked = self._mark(args[0], args[0].shape)
            return marked if dimension is None else marked[dimension]
        name = getattr(func, "__name__", "")
        if name in _SIZES and any(True for _ in _marked((args, kwargs))):
            for number, tensor, dimension in _SIZES[name](args, kwargs, result):
                self._note(number, tensor, dimension)
        return result

    def _mark(self, tensor: Tensor, sizes: torch.Size) -> torch.Size:
        """Mark the sizes of dimensions along which channels differ."""
        labels = self.ledger.value(tensor)
        if isinstance(labels, Weight):
            return sizes
        with _disable_current_modes():
            return torch.Size(
                MarkedInt(size, Extent(labels, dimension)) if stride and size > 1 else size
                for dimension, (size, stride) in enumerate(zip(sizes, labels.stride(), strict=True))
            )

    def _note(self, number: MarkedInt, tensor: Tensor, dimension: int) -> None:
        labels = self.ledger.value(tensor)
        if isinstance(labels, Weight):
            if labels.axes[dimension] is None:
                return
            slices = list(self.ledger.nodes(labels, dimension)[:, None])
        else:
            with _disable_current_modes():
                if dimension not in varying(labels):
                    return
                (thinned,) = thin(labels)
                slices = [known(each.numpy()) for each in thinned.unbind(dimension)]
        graph = self.ledger.graph
        if isinstance(number.home, Extent):
            with _disable_current_modes():
                source = known(thin(number.home.labels)[0].numpy())
            graph.tie(source, np.concatenate(slices), f"a size at {self.ledger.where}")
            return
        uses = graph.attributes.setdefault(number.home, [])
        uses.append(Width(number.factor, number.less, slices))


def _marked(value: Any) -> Iterator[MarkedInt]:
    if isinstance(value, MarkedInt):
        yield value
    elif isinstance(value, slice):
        yield from _marked((value.start, value.stop))
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _marked(each)
    elif isinstance(value, dict):
        yield from _marked(tuple(value.values()))


_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]

_Use = tuple[MarkedInt, Tensor, int]


def _of_reshape(args: Any, kwargs: dict[str, Any], result: Any) -> Iterator[_Use]:
    sizes = kwargs.get("shape", kwargs.get("size", args[1:]))
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list, torch.Size)):
        sizes = sizes[0]
    for dimension, size in enumerate(sizes):
        if isinstance(size, MarkedInt):
            yield size, result, dimension


def _of_unflatten(args: Any, kwargs: dict[str, Any], result: Any) -> Iterator[_Use]:
    dimension = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    sizes = kwargs.get("sizes", args[2] if len(args) > 2 else ())
    dimension %= args[0].ndim
    for position, size in enumerate(sizes):
        if isinstance(size, MarkedInt):
            yield size, result, dimension + position


def _of_split(args: Any, kwargs: dict[str, Any], result: Any) -> Iterator[_Use]:
    sizes = kwargs.get("split_size_or_sizes", kwargs.get("split_size", args[1]))
    dimension = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    parts = tensors_in(result)
    if isinstance(sizes, MarkedInt):
        yield sizes, parts[0], dimension % parts[0].ndim
    elif isinstance(sizes, (tuple, list)):
        for size, part in zip(sizes, parts, strict=False):
            if isinstance(size, MarkedInt):
                yield size, part, dimension % part.ndim


def _of_item(args: Any, kwargs: dict[str, Any], result: Any) -> Iterator[_Use]:
    """``x[:, :n]`` and ``x[:, n:]``: the entries before ``n``, if only slices precede."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    for dimension, part in enumerate(index):
        if not isinstance(part, slice):
            return
        if part.step is None and part.start is None and isinstance(part.stop, MarkedInt):
            yield part.stop, result, dimension


def _of_convolution(args: Any, kwargs: dict[str, Any], result: Any) -> Iterator[_Use]:
    groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
    weight = kwargs["weight"] if "weight" in kwargs else args[1]
    dimension = result.ndim - (weight.ndim - 1)
    if isinstance(groups, MarkedInt) and groups == result.shape[dimension]:
        yield groups, result, dimension


_SIZES = {
    "conv1d": _of_convolution,
    "conv2d": _of_convolution,
    "conv3d": _of_convolution,
    "reshape": _of_reshape,
    "view": _of_reshape,
    "unflatten": _of_unflatten,
    "split": _of_split,
    "split_with_sizes": _of_split,
    "__getitem__": _of_item,
}
