"""Traces the channels of a network by running it.

The network runs once on the meta device while all operations are intercepted. Each element of an
activation has a label: the channel that it belongs to. Operations that move data (reshape, permute,
slice, chunk, concatenate) are applied to the labels too, so that a channel shuffle needs no rule.
Other operations have rules in the other modules of this package. There is no symbolic tracing:
forward may branch on shapes, loop and call any code. If it depends on values, it runs on real
tensors in the same way.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from secateur.errors import NetworkError
from secateur.pruning.tracing import (  # noqa: F401  they register rules
    contract,
    elementwise,
    indexing,
    layers,
    reshape,
)
from secateur.pruning.tracing.attributes import WatchWidths, mark_widths
from secateur.pruning.tracing.channel_graph import ChannelGraph
from secateur.pruning.tracing.heads import separate_heads
from secateur.pruning.tracing.labels import Ledger, Weight
from secateur.pruning.tracing.permanent import copy_of, make_permanent
from secateur.pruning.tracing.rules import (
    cannot_follow,
    only_moves,
    result_without_data,
    rule_of,
    takes_factors,
    tensors_in,
)

Example = Tensor | tuple[Any, ...] | dict[str, Any]
"""Arguments of forward: one tensor, a tuple, or a dict of keyword arguments."""

_MOST_DATA = 2**22
"""Largest number of elements of an index whose values are computed."""


class _Watch(TorchDispatchMode):
    """Runs each operation, and records its results in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = self._without_data(args, kwargs or {})
        for tensor in tensors_in(args, kwargs):
            self.ledger.read(tensor)
        rule = rule_of(func)
        if rule is None:
            with self:  # the operations of its decomposition are intercepted in turn
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            rule = cannot_follow
        result = result_without_data(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        if not only_moves(rule):
            for tensor in tensors_in(args, kwargs):
                self.ledger.use(tensor)
                if not takes_factors(rule):
                    self.ledger.close(tensor)
        rule(self.ledger, func, args, kwargs, result)
        self._keep_data(func, args, kwargs, result)
        return result

    def _without_data(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Convert constants that forward created on the CPU to the meta device."""
        tensors = tensors_in(args, kwargs)
        if not (any(t.is_meta for t in tensors) and any(t.ndim and not t.is_meta for t in tensors)):
            return args, kwargs

        def convert(tensor: Tensor) -> Tensor:
            if not tensor.ndim or tensor.is_meta:
                return tensor
            empty = tensor.to("meta")
            self.ledger.keep_data(empty, tensor)
            if isinstance(self.ledger.value(tensor), Weight):
                self.ledger.carry(empty, self.ledger.value(tensor), self.ledger.traits(tensor))
            return empty

        return tree_map_only(Tensor, convert, (args, kwargs))

    def _keep_data(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Compute the values of an index if those of its inputs are known."""
        if not isinstance(result, Tensor) or not result.is_meta or result.is_floating_point():
            return
        inputs = tensors_in(args, kwargs)
        known = bool(inputs) and all(self.ledger.data(each) is not None for each in inputs)
        if known and result.numel() <= _MOST_DATA:
            real = tree_map_only(Tensor, self.ledger.data, (args, kwargs))
            self.ledger.keep_data(result, func(*real[0], **real[1]))


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
    refuse_compiled(model)
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


def _twice(example: Example) -> Example:
    return tree_map_only(
        Tensor, lambda t: t.expand(2, *t.shape[1:]).clone() if t.ndim else t, example
    )


def follow_channels(
    probe: nn.Module,
    example: Example,
    larger: ChannelGraph | None = None,
    heads: bool = False,
    within: frozenset[str] = frozenset(),
) -> ChannelGraph:
    """Run ``probe``, a network of :func:`weightless`, on ``example``; return its channel graph.

    It runs in inference mode and, if possible, in training mode, where auxiliary heads may run.

    Args:
        probe: Is in inference mode afterwards.
        example: Result of :func:`example_of`.
        larger: Graph of the large network if ``probe`` is a smaller version; if that one ran in
            training mode, so must this. Its ``heads`` and ``within`` are used.
        heads: Whether an attention loses whole heads, in place of channels within each.
        within: Weights of grouped convolutions that lose channels within each group.

    Raises:
        NetworkError: The network depends on values, or does not run on the input's shape.
    """
    graph = ChannelGraph(heads=heads, within=within)
    if larger is not None:
        graph.heads, graph.within = larger.heads, larger.within
    if graph.heads:
        separate_heads(probe)
    mark_widths(probe)
    probe.eval()
    _watch(probe, example, graph, larger)
    if larger is not None and not larger.trains:
        return graph
    both = graph.copy()
    both.trains = True
    try:
        probe.train()
        _watch(probe, _twice(example), both, larger)
    except NetworkError:
        if larger is not None:
            raise
        return graph
    finally:
        probe.eval()
    return both


def _watch(
    probe: nn.Module,
    example: Example,
    graph: ChannelGraph,
    larger: ChannelGraph | None,
) -> None:
    parameters = dict(probe.named_parameters())
    weights = {
        id(tensor): Weight(
            name, tuple(range(tensor.ndim)), tuple(tensor.shape), tuple(tensor.shape)
        )
        for name, tensor in {**parameters, **dict(probe.named_buffers())}.items()
    }
    with _module_stack(probe) as stack, _same_dice(), torch.inference_mode(), _no_fast_path():
        ledger = Ledger(graph, weights, parameters, larger, stack)
        try:
            with _Watch(ledger), WatchWidths(ledger):
                outputs = call(probe, example)
        except Exception as error:  # the network's code may raise anything
            raise _failure(error, stack[-1], example) from error
        for output in _leaves(outputs):
            if not ledger.knows(output):
                raise NetworkError(
                    "cannot tell which channels make an output",
                    where=type(probe).__name__,
                    found=f"{type(output).__name__} that no operation of torch returned",
                    remedy="return plain tensors from forward",
                )
            ledger.read(output)
            graph.outputs.append((tuple(output.shape), str(output.dtype)))
            graph.protect(ledger.labels(output).numpy(), "they are the network's output")
            ledger.close(output)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Disable torch's fused attention for inference, which hides channels."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _leaves(outputs: Any) -> Iterator[Tensor]:
    """Tensors in lists, dictionaries and other objects."""
    for leaf in tree_iter(outputs):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__"):
            yield from _leaves(list(vars(leaf).values()))


@contextmanager
def _same_dice() -> Iterator[None]:
    """Fix random numbers, for networks with stochastic depth."""
    before = random.getstate()
    random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(before)


class ValuesNeededError(NetworkError):
    """Forward depends on values of tensors and does not run on the meta device."""


def _failure(error: Exception, where: str, example: Example) -> NetworkError:
    cause = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if "meta" in cause or isinstance(error, NotImplementedError):
        return ValuesNeededError(
            "cannot trace network",
            where=where,
            found=cause,
            remedy="forward must not look at the values of tensors",
        )
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_in(example)]
    return NetworkError(
        f"network does not run on an input of shape {', '.join(shapes)}",
        where=where,
        found=cause,
        remedy="give an example input of the shape it is made for, (N, C, H, W)",
    )


def refuse_compiled(model: nn.Module) -> None:
    """Check that no module is scripted or quantized.

    Raises:
        NetworkError: A module is scripted, or its weights are quantized.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(
                "cannot prune a scripted module",
                where=name or type(module).__name__,
                remedy="prune the network before torch.jit.script or torch.jit.trace",
            )
        kind = type(module).__module__
        if kind.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise NetworkError(
                "cannot prune a quantized module",
                where=name or type(module).__name__,
                remedy="prune the network first, then quantize it",
            )


@contextmanager
def _module_stack(model: nn.Module) -> Iterator[list[str]]:
    """Names of running modules, outermost first; after a failure, the failing module is last."""
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
