"""A network's graph in inference mode, with the shape of every tensor in it."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import NetworkError


class Protection(Exception):  # noqa: N818  a finding, not an error
    """Why a layer's outputs must stay."""


class _Tracer(fx.Tracer):
    """Remembers the module it is in, which torch's own error does not name."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # after a failure it stays, on purpose
        return result


class _Shapes(fx.Interpreter):
    """Notes the shape of every tensor as the graph runs."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Attributes:
        graph: Every call, in order.
        modules: The network's modules by name, their tensors without data.
        called: How often each module is called, by name.
        tied: Names of modules with a parameter that something else uses too.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    called: Counter[str]
    tied: frozenset[str]

    def calls(self) -> list[fx.Node]:
        """First call of each module, in order."""
        first: dict[Any, fx.Node] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                first.setdefault(node.target, node)
        return list(first.values())

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that ``node`` calls, or None where it calls something else."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def require_plain(self, name: str, kind: type[nn.Module]) -> None:
        """Refuse a layer that does more than its type says, or whose weights serve twice.

        Raises:
            Protection: Says which, and of what layer.
        """
        layer = self.modules[name]
        if type(layer) is not kind:
            raise Protection(f"{name} is a {type(layer).__name__}, not a plain {kind.__name__}")
        if self.called[name] > 1:
            raise Protection(f"{name} is called {self.called[name]} times")
        if name in self.tied:
            raise Protection(f"{name} shares its weights with another use")


def trace(model: nn.Module, example_input: Tensor) -> Trace:
    """Trace ``model``, which is left as it is, and note the shapes for ``example_input``.

    Raises:
        NetworkError: torch.fx cannot trace the network, or it does not run on the input's shape.
    """
    probe = copy.deepcopy(model).eval().to("meta")  # shapes only: nothing is computed
    tracer = _Tracer()
    try:
        graph = tracer.trace(probe)
    except Exception as error:  # whatever the network's own code raises when it meets a proxy
        raise NetworkError(
            "cannot trace network",
            where=tracer.inside[-1] if tracer.inside else type(model).__name__,
            found=f"{type(error).__name__}: {error}",
            remedy="forward must not branch on values or shapes of its input",
        ) from error
    try:
        with torch.no_grad():
            shapes = _Shapes(fx.GraphModule(probe, graph))
            shapes.extra_traceback = False  # its errors say what happened, and no more
            shapes.run(example_input.to("meta"))
    except (RuntimeError, TypeError, ValueError) as error:
        shape = tuple(example_input.shape)
        raise NetworkError("network does not run", where=f"input {shape}", found=error) from error
    called = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    return Trace(graph, dict(probe.named_modules()), called, _tied(probe, graph))


def _tied(model: nn.Module, graph: fx.Graph) -> frozenset[str]:
    """Names of modules with a parameter that something else uses too."""
    homes: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        homes.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    shared = {name for names in homes.values() if len(names) > 1 for name in names}
    fetched = {str(n.target).rpartition(".")[0] for n in graph.nodes if n.op == "get_attr"}
    return frozenset(shared | fetched)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of what ``node`` gives; empty where that is no tensor."""
    return node.meta.get("shape", ())
