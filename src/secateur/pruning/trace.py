"""Running a network to see where its channels go, instead of reading its source.

The network runs once, on tensors without data, while every operation is watched. An activation
carries one label for each of its elements: the channel it belongs to. What an operation does to the
data (reshape, permute, slice, chunk, concatenate) it does to the labels, so that a channel shuffle
needs no rule of its own; :mod:`secateur.pruning.operations` says what the others do. Nothing is
traced symbolically: forward may branch on shapes, loop and call what it likes, as long as it does
not look at values.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from secateur.errors import NetworkError
from secateur.pruning.labels import Ledger, Weight
from secateur.pruning.operations import cannot_follow, rule_of
from secateur.pruning.wiring import Axis, Wiring


class _Watch(TorchDispatchMode):
    """Runs each operation, and enters in the ledger what it gives."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = rule_of(func)
        if rule is None:
            with self:  # what it is made of comes back here, piece by piece
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            rule = cannot_follow
        result = func(*args, **kwargs)
        rule(self.ledger, func, args, kwargs, result)
        return result


def weightless(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose tensors have shapes and no data; shared ones stay shared.

    Single numbers, such as a batch-norm's count of batches, stay: layers look at them.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.cpu().clone() if buffer.ndim == 0 else buffer.to("meta")
    return copy.deepcopy(model, memo)


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer, with the first name of the same tensor."""
    first: dict[int, str] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def example_of(example_input: Tensor) -> Tensor:
    """One image of the batch, without data."""
    return torch.empty_like(example_input[:1], device="meta", requires_grad=False)


def follow_channels(probe: nn.Module, example: Tensor, larger: Wiring | None = None) -> Wiring:
    """Run ``probe``, a network of :func:`weightless`, on ``example`` and tell what was seen.

    It runs at inference and, if it can, in training, where heads may read what nothing reads else.

    Args:
        probe: Left in inference mode.
        example: One image, of :func:`example_of`.
        larger: Of the network that ``probe`` is a smaller version of: if that one ran in training,
            this one has to.

    Raises:
        NetworkError: The network looks at values, or does not run on the input's shape.
    """
    wiring = Wiring()
    wider = {} if larger is None else larger.sizes
    _watch(probe.eval(), example, wiring, wider)
    if larger is not None and not larger.trains:
        return wiring
    both = copy.deepcopy(wiring)
    both.trains = True
    try:
        _watch(probe.train(), example.expand(2, *example.shape[1:]), both, wider)
    except NetworkError:
        if larger is not None:
            raise
        return wiring
    finally:
        probe.eval()
    return both


def _watch(probe: nn.Module, example: Tensor, wiring: Wiring, wider: Collection[Axis]) -> None:
    tensors = {**dict(probe.named_parameters()), **dict(probe.named_buffers())}
    weights = {
        id(tensor): Weight(name, tuple(range(tensor.ndim)), tuple(tensor.shape), tuple(tensor.shape))
        for name, tensor in tensors.items()
    }
    with _module_stack(probe) as stack, torch.inference_mode():
        ledger = Ledger(wiring, weights, wider, stack)
        try:
            with _Watch(ledger):
                outputs = probe(example)
        except Exception as error:  # whatever the network's own code raises
            raise _failure(error, stack[-1], example) from error
        for output in tree_iter(outputs):
            if isinstance(output, Tensor):
                labels = ledger.labels(output).numpy()
                wiring.protect(labels, "they are the network's output")


def _failure(error: Exception, where: str, example: Tensor) -> NetworkError:
    found = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if "meta" in found or isinstance(error, NotImplementedError):
        return NetworkError(
            "cannot trace network",
            where=where,
            found=found,
            remedy="forward must not look at the values of tensors",
        )
    shape = tuple(example.shape)
    return NetworkError(
        f"network does not run on an input of shape {shape}",
        where=where,
        found=found,
        remedy="give an example input of the shape it is made for, (N, C, H, W)",
    )


@contextmanager
def _module_stack(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules that are running, outermost first; after a failure the culprit's last."""
    stack = [type(model).__name__]
    handles = []
    for name, module in model.named_modules():
        if name:
            handles += [
                module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)),
                module.register_forward_hook(lambda *_: (stack.pop(), None)[1]),
            ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
