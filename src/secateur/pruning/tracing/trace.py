"""Traces the channels of a network by running it.

The network runs once on the meta device while all operations are intercepted. Each element of an
activation has a label: the channel that it belongs to. Operations that move data (reshape, permute,
slice, chunk, concatenate) are applied to the labels too, so that a channel shuffle needs no rule.
Other operations have rules in the other modules of this package. There is no symbolic tracing:
forward may branch on shapes, loop and call any code. If it depends on values, it runs on real
tensors in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
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
from secateur.pruning.tracing.probe import Example, call, twice
from secateur.pruning.tracing.rules import (
    cannot_follow,
    join_pair,
    only_moves,
    result_without_data,
    rule_of,
    takes_factors,
    takes_pairs,
    tensors_in,
)

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
        if not takes_pairs(rule):
            for tensor in tensors_in(args, kwargs):
                join_pair(self.ledger, tensor)
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


def follow_channels(
    probe: nn.Module,
    example: Example,
    larger: ChannelGraph | None = None,
    heads: bool = False,
    within: frozenset[str] = frozenset(),
) -> ChannelGraph:
    """Run ``probe``, a network of :func:`weightless`, on ``example``; return its channel graph.

    It runs in inference mode and, if possible, in training mode, where auxiliary heads may run. If
    training repeats the operations of inference, smaller versions run in inference only.

    Args:
        probe: Is in inference mode afterwards.
        example: Result of :func:`example_of`.
        larger: Graph of the large network if ``probe`` is a smaller version; if that one ran
            otherwise in training mode, this must too. Its ``heads`` and ``within`` are used.
        heads: Whether an attention loses whole heads, in place of channels within each.
        within: Weights of grouped convolutions that lose channels within each group.

    Raises:
        NetworkError: The network depends on values, or does not run on the input's shape.
    """
    graph = ChannelGraph(heads=heads, within=within)
    if larger is not None:
        graph.heads, graph.within = larger.heads, larger.within
    separate_heads(probe)
    mark_widths(probe)
    probe.eval()
    _watch(probe, example, graph, larger)
    if larger is not None and not larger.trains:
        return graph
    try:
        both = _in_training(probe, example, graph, larger)
    except NetworkError:
        if larger is not None:
            raise
        return graph
    finally:
        probe.eval()
    return graph if larger is None and both.repeats(graph) else both


def _in_training(
    probe: nn.Module, example: Example, graph: ChannelGraph, larger: ChannelGraph | None
) -> ChannelGraph:
    """A copy of ``graph`` with a run in training mode; on two images if one is too few."""
    probe.train()
    for last, batch in enumerate((example, twice(example))):
        both = graph.copy()
        both.trains = True
        try:
            _watch(probe, batch, both, larger)
        except NetworkError:
            if last:
                raise
        else:
            break
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
    with (
        _module_stack(probe) as stack,
        _same_state(probe),
        _same_dice(),
        torch.inference_mode(),
        _no_fast_path(),
    ):
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
            join_pair(ledger, output)
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


@contextmanager
def _same_state(model: nn.Module) -> Iterator[None]:
    """Undo what forward stores in modules, such as a table for the size of its input.

    Replaced tensors stay alive meanwhile: a ledger knows weights by ``id``.
    """
    before = []
    for module in model.modules():
        own = vars(module)
        parts = [(part, part.copy()) for part in (own, *own.values())
                 if type(part) in (dict, list, set)]  # fmt: skip
        before += parts
    try:
        yield
    finally:
        for part, copied in before:
            part.clear()
            (part.extend if isinstance(part, list) else part.update)(copied)


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
