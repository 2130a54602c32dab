"""Records a network's inference as a list of calls with known shapes.

The network runs once on the meta device while all ATen operations are recorded. This does not
depend on how forward is written, and is much faster than an export.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from secateur.pruning.tracing.probe import weightless


class Unsupported(Exception):  # noqa: N818  a finding, not an error
    """The fast engine does not support the network."""


@dataclass(frozen=True)
class Value:
    """A computed tensor, by number; 0 is the images."""

    number: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer, by its first name and shape, possibly transposed."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Call:
    """One operation.

    Attributes:
        op: ATen name without overload and without the underscore of in-place operations.
        args: All arguments of the schema in order: values, weights and plain data.
        outputs: Output values.
    """

    op: str
    args: tuple[Any, ...]
    outputs: tuple[Value, ...]

    @cached_property
    def inputs(self) -> list[Value]:
        """Input values, in order."""
        return [item for item in tree_iter(self.args) if isinstance(item, Value)]

    @cached_property
    def weights(self) -> list[Weight]:
        """Input weights, in order."""
        return [item for item in tree_iter(self.args) if isinstance(item, Weight)]


@dataclass(frozen=True)
class Tape:
    """A network's calls in order.

    Attributes:
        calls: Calls in order.
        image: Input, (N, C, H, W).
        logits: Output, (N, classes).
    """

    calls: tuple[Call, ...]
    image: Value
    logits: Value

    def before(self, values: Iterable[Value]) -> list[Call]:
        """The calls that ``values`` need, in order."""
        needed = set(values)
        known = []
        for call in reversed(self.calls):
            if not needed.isdisjoint(call.outputs):
                needed.update(call.inputs)
                known.append(call)
        return known[::-1]

    def after(self, first: Iterable[Call]) -> list[Call]:
        """The calls ``first`` and all that depend on them, in order."""
        chosen = {call.outputs for call in first}
        reached: set[Value] = set()
        known = []
        for call in self.calls:
            if call.outputs in chosen or not reached.isdisjoint(call.inputs):
                reached.update(call.outputs)
                known.append(call)
        return known


def record(model: nn.Module, shape: Sequence[int]) -> Tape:
    """Record the inference of ``model`` on images of ``shape``, (N, C, H, W).

    Args:
        model: Any network; not modified.
        shape: Shape of a batch.

    Raises:
        Unsupported: The network does not run on the meta device, or changes tensors with views.
    """
    probe = weightless(model).eval()
    image = torch.empty(*shape, device="meta")
    recorder = _Recorder(probe, image)
    try:
        with torch.no_grad(), recorder:
            logits = probe(image)
    except Unsupported:
        raise
    except Exception as error:  # the network's code may raise anything
        raise Unsupported(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    if not isinstance(logits, Tensor):
        raise Unsupported(f"its output is a {type(logits).__name__}")
    output = recorder.value(logits)
    if not isinstance(output, Value) or output.shape[:1] != (shape[0],) or len(output.shape) != 2:
        raise Unsupported(f"its output has shape {output.shape}, not (images, classes)")
    return Tape(tuple(recorder.calls), Value(0, tuple(shape)), output)


class _Recorder(TorchDispatchMode):
    def __init__(self, probe: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._weights: dict[int, Weight] = {}
        for name, tensor in [*probe.named_parameters(), *probe.named_buffers()]:
            self._weights.setdefault(id(tensor), Weight(name, tuple(tensor.shape)))
        self._values = {id(image): Value(0, tuple(image.shape))}
        self._alive: dict[int, Tensor] = {id(image): image}  # keeps ids unique
        self._count = 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        name = schema.name.removeprefix("aten::")
        if name == "t" and id(args[0]) in self._weights:
            weight = self._weights[id(args[0])]
            self._weights[id(result)] = replace(weight, transposed=not weight.transposed)
            self._alive[id(result)] = result
        elif any(isinstance(item, Tensor) for item in tree_iter(args)):
            # All arguments of the schema, including defaults.
            arguments = [
                args[i] if i < len(args) else (kwargs or {}).get(each.name, each.default_value)
                for i, each in enumerate(schema.arguments)
            ]
            read = tree_map_only(Tensor, self.value, tuple(arguments))
            if schema.is_mutable:
                self._forget_views(args[0])
            self.calls.append(Call(name.rstrip("_"), read, self._new(result)))
        return result

    def value(self, tensor: Tensor) -> Value | Weight:
        """The value or weight of ``tensor``."""
        known = self._weights.get(id(tensor)) or self._values.get(id(tensor))
        if known is None:
            raise Unsupported("it reads a tensor that it made itself, or changed through a view")
        return known

    def _new(self, result: Any) -> tuple[Value, ...]:
        outputs = []
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                value = Value(self._count, tuple(tensor.shape))
                self._count += 1
                self._values[id(tensor)], self._alive[id(tensor)] = value, tensor
                outputs.append(value)
        return tuple(outputs)

    def _forget_views(self, changed: Tensor) -> None:
        """Forget tensors that share memory with one changed in place."""
        storage = changed.untyped_storage()._cdata
        for key, tensor in self._alive.items():
            if tensor is not changed and tensor.untyped_storage()._cdata == storage:
                self._values.pop(key, None)
