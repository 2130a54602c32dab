"""Copies of a network and of its example input on which its channels are traced.

A copy lives on the meta device, so that a run costs no arithmetic; if forward depends on values, it
lives on the CPU. The given network is never run and never changed.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from secateur.errors import NetworkError
from secateur.pruning.tracing.permanent import copy_of, make_permanent
from secateur.pruning.tracing.refusals import refuse_unsuitable
from secateur.pruning.tracing.rules import result_without_data, tensors_in

Example = Tensor | tuple[Any, ...] | dict[str, Any]
"""Arguments of forward: one tensor, a tuple, or a dict of keyword arguments."""


def weightless(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` on the meta device; shared tensors stay shared.

    Single numbers, such as a batch-norm's count of batches, and integer tensors keep their values.

    Raises:
        NetworkError: The network cannot be copied.
    """
    memo: dict[int, Any] = {}
    for owner, module in model.named_modules():
        # Most of a module's collections are empty; copying them would take the longest.
        memo |= {id(part): type(part)() for part in vars(module).values()
                 if type(part) in (dict, OrderedDict, set) and not part}  # fmt: skip
        for name, tensor in _tensors_of(module):
            if is_lazy(tensor):
                raise NetworkError(
                    "network has a layer without a shape",
                    where=f"{owner}.{name}" if owner else name,
                    remedy="run it once on an image first",
                )
            if isinstance(tensor, nn.Parameter):
                empty = torch.empty_like(tensor, device="meta")
                memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            elif tensor.is_meta or (tensor.ndim and tensor.is_floating_point()):
                memo[id(tensor)] = torch.zeros_like(tensor, device="meta" if tensor.ndim else "cpu")
            else:
                memo[id(tensor)] = tensor.detach().cpu().clone()
    return _copied(model, lambda: copy.deepcopy(model, memo))


def with_values(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` on the CPU, for a forward that depends on values.

    Raises:
        NetworkError: The network cannot be copied.
    """
    return _copied(model, partial(copy_of, model)).cpu()


def _copied(model: nn.Module, copier: Callable[[], nn.Module]) -> nn.Module:
    refuse_unsuitable(model)
    try:
        probe = copier()
        make_permanent(probe)
        return probe
    except Exception as error:  # the network's code may raise anything
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NetworkError(
            "cannot copy network", where=type(model).__name__, found=cause
        ) from error


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and other tensors of a module itself."""
    tensors = {**module._parameters, **module._buffers, **vars(module)}
    return ((name, value) for name, value in tensors.items() if isinstance(value, Tensor))


def first_names(model: nn.Module) -> dict[str, str]:
    """From each name of a parameter or buffer to the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def example_of(example_input: Example, values: bool = False) -> Example:
    """One element of the batch of each tensor, on the meta device unless ``values`` is set.

    Raises:
        NetworkError: There is no tensor among the arguments.
    """
    if not isinstance(example_input, (Tensor, tuple, list, dict)) or not tensors_in(example_input):
        raise NetworkError(
            "example input is not a tensor",
            expected="a tensor, or a tuple or dict of forward's arguments",
            found=type(example_input).__name__,
        )

    def one(tensor: Tensor) -> Tensor:
        plain = tensor.detach().as_subclass(Tensor)
        plain = plain[:1] if plain.ndim else plain
        return plain.cpu().clone() if values else torch.empty_like(plain, device="meta")

    example = tree_map_only(Tensor, one, example_input)
    return tuple(example) if isinstance(example, list) else example


def twice(example: Example) -> Example:
    """Repeat the one element of the batch, because batch-norm in training needs two."""
    return tree_map_only(
        Tensor, lambda t: t.expand(2, *t.shape[1:]).clone() if t.ndim else t, example
    )


def call(model: nn.Module, example: Example) -> Any:
    """Run a network on an example."""
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


class _QuickNorms(TorchDispatchMode):
    """Skips torch's slow batch-norm on the meta device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = result_without_data(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if result is None else result


def call_for_shapes(probe: nn.Module, example: Example) -> None:
    """Run a network of :func:`weightless` for its hooks, which may read shapes only."""
    with torch.inference_mode(), _QuickNorms():
        call(probe, example)
