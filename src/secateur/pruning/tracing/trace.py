"""Running a network to see where its channels go, instead of reading its source.

The network runs once, on tensors without data, while every operation is watched. An activation
carries one label for each of its elements: the channel it belongs to. What an operation does to the
data (reshape, permute, slice, chunk, concatenate) it does to the labels, so that a channel shuffle
needs no rule of its own; ``moves``, ``computations`` and ``layers`` say what the others do. Nothing
is traced symbolically: forward may branch on shapes, loop and call what it likes, as long as it
does not look at values.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from secateur.errors import NetworkError
from secateur.pruning.tracing import elementwise, layers, reshape  # noqa: F401  they register rules
from secateur.pruning.tracing.channel_graph import Axis, Wiring
from secateur.pruning.tracing.labels import Ledger, Weight
from secateur.pruning.tracing.rules import cannot_follow, rule_of


class _Watch(TorchDispatchMode):
    """Runs each operation, and enters in the ledger what it gives."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = _without_data(args, kwargs or {})
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


def _without_data(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Constants that forward made on the processor, without data where others have none."""
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    if any(t.is_meta for t in tensors) and any(t.ndim and not t.is_meta for t in tensors):
        return tree_map_only(Tensor, lambda t: t.to("meta") if t.ndim else t, (args, kwargs))
    return args, kwargs


def weightless(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose tensors have shapes and no data; shared ones stay shared.

    Single numbers, such as a batch-norm's count of batches, stay: layers look at them.

    Raises:
        NetworkError: The network cannot be copied.
    """
    memo: dict[int, Any] = {}
    for owner, module in model.named_modules():
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
            elif tensor.ndim or tensor.is_meta:
                memo[id(tensor)] = torch.zeros_like(tensor, device="meta" if tensor.ndim else "cpu")
            else:
                memo[id(tensor)] = tensor.detach().cpu().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the network's own parts raise
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NetworkError(
            "cannot copy network", where=type(model).__name__, found=found
        ) from error


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and other tensors that a module itself holds."""
    held = {**module._parameters, **module._buffers, **vars(module)}
    return ((name, value) for name, value in held.items() if isinstance(value, Tensor))


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
    probe.eval()
    _watch(probe, example, wiring, wider)
    if larger is not None and not larger.trains:
        return wiring
    both = copy.deepcopy(wiring)
    both.trains = True
    try:
        probe.train()
        _watch(probe, example.expand(2, *example.shape[1:]), both, wider)
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
        id(tensor): Weight(
            name, tuple(range(tensor.ndim)), tuple(tensor.shape), tuple(tensor.shape)
        )
        for name, tensor in tensors.items()
    }
    with _module_stack(probe) as stack, _same_dice(), torch.inference_mode():
        ledger = Ledger(wiring, weights, wider, stack)
        try:
            with _Watch(ledger):
                outputs = probe(example)
        except Exception as error:  # whatever the network's own code raises
            raise _failure(error, stack[-1], example) from error
        for output in _leaves(outputs):
            wiring.protect(ledger.labels(output).numpy(), "they are the network's output")


def _leaves(outputs: Any) -> Iterator[Tensor]:
    """Tensors in lists, dictionaries and objects of any kind."""
    for leaf in tree_iter(outputs):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__"):
            yield from _leaves(list(vars(leaf).values()))


@contextmanager
def _same_dice() -> Iterator[None]:
    """The same random numbers every time, where forward leaves layers out at random."""
    before = random.getstate()
    random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(before)


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
    """Names of the modules that run, outermost first; after a failure the culprit's last."""
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
