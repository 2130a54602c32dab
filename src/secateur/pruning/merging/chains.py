"""Finds chains of convolutions in the graph of a network's modules.

Nothing but the calls matters: a convolution whose result only a batch-norm, a residual add or an
activation reads is a link, and the next convolution that reads it the next one.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import fx, nn

from secateur.pruning.merging.links import Chain, Convolution, Link, Skip, Window
from secateur.pruning.merging.traced import called_once, graphs_of, trace_modules
from secateur.pruning.tracing.probe import Example

_ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus,
)  # fmt: skip
_ACTIVATION_NAMES = (
    "relu", "relu_", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish",
    "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus",
)  # fmt: skip
_ACTIVATION_FUNCTIONS = {
    getattr(home, name) for home in (F, torch) for name in _ACTIVATION_NAMES if hasattr(home, name)
}
_ADDITIONS = (operator.add, operator.iadd, torch.add)


def find_chains(model: nn.Module, example_input: Example) -> list[Chain]:
    """Return the chains of convolutions of a network, with the residual adds around them.

    A chain is made of 2-d convolutions (any groups, stride and dilation), batch-norms and
    activations. It goes on through a residual add if the other operand is the value between two of
    its own links, or one convolution (with batch-norm) of it. Convolutions that run twice, share
    weights, or do not pad with zeros are in no chain.

    Args:
        model: Any network; not modified.
        example_input: See :func:`secateur.plan_removal`.

    Returns:
        In the network's order, including chains of a single convolution.

    Raises:
        NetworkError: The network cannot be copied, traced or run.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> (chain,) = find_chains(network, torch.zeros(1, 3, 8, 8))
        >>> [(link.layer.conv, link.activation) for link in chain.links]
        [('0', True), ('2', False)]
    """
    return chains_of(trace_modules(model, example_input))


def chains_of(traced: nn.Module) -> list[Chain]:
    """Chains of a network of :func:`trace_modules`; see :func:`find_chains`."""
    once = called_once(traced)
    return [
        chain for name, graph in graphs_of(traced).items() for chain in _Finder(name, graph, once)()
    ]


@dataclass
class _Growing:
    """A chain while its graph is read, with the nodes of its boundaries."""

    source: fx.Node
    links: list[Link] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    boundaries: list[fx.Node] = field(default_factory=list)
    readers: list[set[fx.Node]] = field(default_factory=list)
    """For each boundary, the nodes of the chain that read it."""


class _Finder:
    """Reads one graph from its first node to its last."""

    def __init__(self, name: str, graph: fx.GraphModule, once: set[nn.Module]) -> None:
        self.name, self.graph, self.once = name, graph, once
        self.nodes = list(graph.graph.nodes)
        self.ends: dict[fx.Node, _Growing] = {}
        """Chains by the last node of their last link."""
        self.chains: list[_Growing] = []
        self.projections = {
            node: conv for node in self.nodes if (conv := self._projection(node)) is not None
        }

    def __call__(self) -> list[Chain]:
        aside = {conv for conv, _ in self.projections.values()}
        for node in self.nodes:
            if self._is_link(node) and node not in aside:
                self._append(node)
            elif node in self.projections or self._is_addition(node):
                self._add(node)
            elif node.all_input_nodes and node.all_input_nodes[0] in self.ends:
                self._follow(node)
        return [self._finished(chain) for chain in self.chains]

    # ---- what nodes are

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_link(self, node: fx.Node) -> bool:
        module = self._module(node)
        return type(module) is nn.Conv2d and module in self.once and _pads_zeros(module)

    def _is_norm(self, node: fx.Node) -> bool:
        module = self._module(node)
        return (
            type(module) is nn.BatchNorm2d
            and module in self.once
            and module.running_mean is not None
        )

    def _is_activation(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._module(node), _ACTIVATION_MODULES)
        if node.op == "call_method":
            return node.target in _ACTIVATION_NAMES
        return node.op == "call_function" and node.target in _ACTIVATION_FUNCTIONS

    def _is_addition(self, node: fx.Node) -> bool:
        function = node.op == "call_function" and node.target in _ADDITIONS
        method = node.op == "call_method" and node.target in ("add", "add_")
        operands = node.all_input_nodes
        return (function or method) and len(operands) == 2 == len(node.args) and not node.kwargs

    def _convolved(self, node: fx.Node) -> fx.Node | None:
        """The convolution, possibly with a batch-norm, that alone gives a node; or None."""
        if len(node.users) == 1 and self._is_norm(node):
            (node,) = node.all_input_nodes
        return node if len(node.users) == 1 and self._is_link(node) else None

    def _projection(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The convolution and the operand of an addition that project what the other one reads."""
        if not self._is_addition(node):
            return None
        first, second = node.all_input_nodes
        for way, other in ((second, first), (first, second)):
            conv = self._convolved(way)
            if conv is None or other is conv.all_input_nodes[0]:
                continue
            if self._comes_from(other, conv.all_input_nodes[0]):
                return conv, way
        return None

    def _comes_from(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether links lead from ``source`` to ``node``."""
        while node is not source:
            known = self._is_link(node) or self._is_norm(node) or self._is_activation(node)
            if self._is_addition(node):
                first, second = node.all_input_nodes
                node = second if self._convolved(second) or not self._convolved(first) else first
            elif known:
                node = node.all_input_nodes[0]
            else:
                return False
        return True

    # ---- growth

    def _append(self, node: fx.Node) -> None:
        """A convolution continues the chain that it reads, or starts one."""
        source = node.all_input_nodes[0]
        chain = self.ends.pop(source, None)
        if chain is None:
            chain = _Growing(source, boundaries=[source], readers=[set()])
            self.chains.append(chain)
        chain.readers[-1].add(node)
        layer = self._convolution(node)
        chain.links.append(Link(layer, node.name, node.name, activation=False))
        chain.boundaries.append(node)
        chain.readers.append(set())
        self.ends[node] = chain

    def _convolution(self, node: fx.Node, norm: fx.Node | None = None) -> Convolution:
        conv = self._module(node)
        assert isinstance(conv, nn.Conv2d)
        norm_name = None if norm is None else str(norm.target)
        return Convolution(
            str(node.target), norm_name, _window(conv), conv.in_channels, conv.out_channels,
            conv.groups,
        )  # fmt: skip

    def _follow(self, node: fx.Node) -> None:
        """A batch-norm or activation becomes part of the last link."""
        before = node.all_input_nodes[0]
        chain = self.ends[before]
        link = chain.links[-1]
        if len(before.users) > 1 or len(node.all_input_nodes) > 1 or link.activation:
            return
        if self._is_norm(node) and link.layer.norm is None and link.output == before.name:
            if before.name != link.node:  # an addition is between
                return
            layer = replace(link.layer, norm=str(node.target))
            self._move(chain, node, replace(link, layer=layer, node=node.name, output=node.name))
        elif self._is_activation(node):
            self._move(chain, node, replace(link, output=node.name, activation=True))

    def _add(self, node: fx.Node) -> None:
        """An addition of an earlier boundary, possibly projected, becomes part of the last link."""
        first, second = node.all_input_nodes
        conv, way = self.projections.get(node, (None, None))
        for main, other in ((first, second), (second, first)):
            chain = self.ends.get(main)
            start = other if conv is None else conv.all_input_nodes[0]
            if chain is None or main is way or len(main.users) > 1 or chain.links[-1].activation:
                continue
            if start not in chain.boundaries[:-1] or (conv is not None and other is not way):
                continue
            number = chain.boundaries.index(start)
            skip = Skip(number, len(chain.links), self._projected(conv, way), node.name)
            if not _fits(chain, skip):
                continue
            chain.skips.append(skip)
            chain.readers[number].add(node if conv is None else conv)
            self._move(chain, node, replace(chain.links[-1], output=node.name))
            return

    def _projected(self, conv: fx.Node | None, way: fx.Node | None) -> Convolution | None:
        if conv is None or way is None:
            return None
        return self._convolution(conv, None if way is conv else way)

    def _move(self, chain: _Growing, node: fx.Node, link: Link) -> None:
        del self.ends[chain.boundaries[-1]]
        chain.links[-1], chain.boundaries[-1] = link, node
        self.ends[node] = chain

    def _finished(self, chain: _Growing) -> Chain:
        inner = range(1, len(chain.links))
        kept = (n for n in inner if set(chain.boundaries[n].users) - chain.readers[n])
        return Chain(
            self.name,
            chain.source.name,
            tuple(chain.links),
            tuple(chain.skips),
            frozenset(kept),
        )


def _fits(chain: _Growing, skip: Skip) -> bool:
    """Whether both operands of an addition stay aligned once all padding is in front."""
    window = Window()
    for link in chain.links[skip.start : skip.end]:
        window = window.then(link.layer.window)
    aligned = window.stride == skip.window.stride and window.shrinks == skip.window.shrinks
    way = skip.projection.outputs if skip.projection else chain.links[skip.start].layer.inputs
    return aligned and way == chain.links[-1].layer.outputs


def _pads_zeros(conv: nn.Conv2d) -> bool:
    """Whether a convolution pads with equally many zeros at both sides."""
    if conv.padding_mode != "zeros":
        return False
    return conv.padding != "same" or all(side % 2 == 1 for side in _reach(conv))


def _reach(conv: nn.Conv2d) -> tuple[int, int]:
    height, width = (d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return height, width


def _window(conv: nn.Conv2d) -> Window:
    reach = _reach(conv)
    height, width = conv.padding if not isinstance(conv.padding, str) else (0, 0)
    if conv.padding == "same":
        height, width = ((side - 1) // 2 for side in reach)
    rows, columns = conv.stride
    return Window(reach, (rows, columns), (int(height), int(width)))
