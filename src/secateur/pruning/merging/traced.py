"""A network as graphs of its modules, in which nodes can be replaced.

The graph of ``torch.fx`` has the calls of modules and functions in order. Most networks are one
graph. Where forward branches on shapes or values, the parts that do not are graphs of their own.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import NetworkError
from secateur.pruning.tracing.permanent import permanent_copy
from secateur.pruning.tracing.probe import Example, call
from secateur.pruning.tracing.refusals import refuse_unsuitable


def trace_modules(model: nn.Module, example_input: Example) -> nn.Module:
    """Return a copy in inference mode in which every part with convolutions is a graph, if it can.

    Names of modules do not change. Functions that depend on the mode, such as ``F.dropout`` with
    ``self.training``, keep doing what they do in inference.

    Args:
        model: Not modified.
        example_input: See :func:`secateur.plan_removal`.

    Raises:
        NetworkError: The network is scripted or quantized, does not run, or the copy computes
            something else.
    """
    refuse_unsuitable(model)
    plain = permanent_copy(model).eval()
    traced = _traced(permanent_copy(plain), {}).eval()
    for module in traced.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # a removed block leaves its input
    if not _same(plain, traced, example_input):
        raise NetworkError(
            "cannot trace the modules of the network",
            where=type(model).__name__,
            found="another output of its graph",
            remedy="forward must compute the same in each call",
        )
    return traced


@torch.no_grad()
def _same(model: nn.Module, traced: nn.Module, example_input: Example) -> bool:
    """Whether two networks give the same outputs.

    Raises:
        NetworkError: The first one does not run.
    """
    try:
        expected = tree_leaves(call(model, example_input))
    except Exception as error:  # the network's code may raise anything
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NetworkError(
            "network does not run on the example input", where=type(model).__name__, found=cause
        ) from error
    actual = tree_leaves(call(traced, example_input))
    return len(expected) == len(actual) and all(
        not isinstance(first, Tensor)
        or torch.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True)
        for first, second in zip(expected, actual, strict=True)
    )


def _traced(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in done:
        done[module] = _new_graph(module, done)
    return done[module]


def _new_graph(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    children = list(module.named_children())
    if not children or not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return module
    try:
        return fx.symbolic_trace(module)
    except Exception:  # the network's code may raise anything
        for name, child in children:
            module._modules[name] = _traced(child, done)
        return module


def graphs_of(traced: nn.Module) -> dict[str, fx.GraphModule]:
    """The graphs of a network of :func:`trace_modules`, by name."""
    named = traced.named_modules()
    return {name: part for name, part in named if isinstance(part, fx.GraphModule)}


def called_once(traced: nn.Module) -> set[nn.Module]:
    """Modules that a single node calls and that share no parameter with another one."""
    calls: Counter[nn.Module] = Counter()
    for graph in graphs_of(traced).values():
        for node in graph.graph.nodes:
            if node.op == "call_module":
                calls[graph.get_submodule(node.target)] += 1
    owners = Counter(id(p) for module in calls for p in module.parameters(recurse=False))
    return {
        module
        for module, count in calls.items()
        if count == 1 and all(owners[id(p)] == 1 for p in module.parameters(recurse=False))
    }
