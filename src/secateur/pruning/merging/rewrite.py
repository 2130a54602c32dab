"""Puts linear segments into a network, and merges them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable

from torch import fx, nn

from secateur.errors import NetworkError
from secateur.pruning.merging.chains import chains_of
from secateur.pruning.merging.fold import fold
from secateur.pruning.merging.linear_segment import LinearSegment
from secateur.pruning.merging.links import Segment
from secateur.pruning.merging.traced import graphs_of


def linearize(traced: nn.Module, segments: Iterable[Segment]) -> nn.Module:
    """Return a copy in which segments have no activations, and removed branches are gone.

    A segment to merge becomes a :class:`LinearSegment` under the name of its first convolution,
    with all its padding at the front. Train the result, then merge it: both compute the same.

    Args:
        traced: A network of :func:`secateur.pruning.merging.traced.trace_modules`; not modified.
        segments: Of the same network, not overlapping.
    """
    network = copy.deepcopy(traced)
    graphs = graphs_of(network)
    order = {
        (name, str(node.target)): position
        for name, graph in graphs.items()
        for position, node in enumerate(graph.graph.nodes)
    }
    # Last first, because a segment reads a node that the replacement of the one before it erases.
    for segment in sorted(
        segments, key=lambda s: order[s.chain.graph, s.links[0].layer.conv], reverse=True
    ):
        graph = graphs[segment.chain.graph]
        if segment.kind == "merge":
            _replace(graph, segment)
        elif segment.kind == "remove":
            _remove_branch(graph, segment)
    for graph in graphs.values():
        graph.delete_all_unused_submodules()
        graph.recompile()
    return network


def merge_segments(network: nn.Module) -> nn.Module:
    """Return a copy in which each linear segment is one convolution; it computes the same.

    Args:
        network: The trained ``linearized`` of :func:`secateur.merge_depth`; not modified.

    Examples:
        >>> first, second = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 8, 3, padding=1)
        >>> pool, last = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)
        >>> network = nn.Sequential(first, nn.ReLU(), second, pool, nn.Flatten(), last)
        >>> images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
        >>> depth = secateur.merge_depth(network, images[:1], images, labels, latency=0.9)
        >>> optimizer = torch.optim.SGD(depth.linearized.train().parameters(), lr=0.01)
        >>> nn.functional.cross_entropy(depth.linearized(images), labels).backward()
        >>> optimizer.step()
        >>> merged = secateur.merge_segments(depth.linearized.eval())
        >>> torch.allclose(merged(images), depth.linearized(images), atol=1e-5)
        True
    """
    merged = copy.deepcopy(network)
    for name, segment in list(merged.named_modules()):
        if isinstance(segment, LinearSegment):
            merged.set_submodule(name, fold(segment))
    return merged


def to_json(traced: nn.Module, segments: Iterable[Segment]) -> str:
    """Segments as plain data, for :func:`from_json` on the same architecture.

    Args:
        traced: The network that they are of.
        segments: Merges and removals.
    """
    chains = chains_of(traced)
    return json.dumps([[chains.index(s.chain), s.start, s.end, s.kind] for s in segments])


def from_json(traced: nn.Module, text: str) -> list[Segment]:
    """Read segments of :func:`to_json`.

    Raises:
        NetworkError: The network has no such chains.
    """
    chains = chains_of(traced)
    segments = []
    for chain, start, end, kind in json.loads(text):
        if chain >= len(chains) or end > len(chains[chain].links):
            raise NetworkError(
                "merges of another network",
                expected=f"a chain {chain} of {end} layers or more",
                found=f"chains of {', '.join(str(len(each.links)) for each in chains)} layers",
            )
        segments.append(Segment(chains[chain], start, end, kind))
    return segments


def nodes_between(graph: fx.Graph, segment: Segment) -> list[fx.Node]:
    """Nodes of a segment, in order: all that its result is computed from, back to its input."""
    named = {node.name: node for node in graph.nodes}
    source = named[segment.chain.boundary(segment.start)]
    waiting, inside = [named[segment.last]], set()
    while waiting:
        node = waiting.pop()
        if node is not source and node not in inside:
            inside.add(node)
            waiting += node.all_input_nodes
    return [node for node in graph.nodes if node in inside]


def segment_as_it_is(graph: fx.GraphModule, segment: Segment) -> fx.GraphModule:
    """A segment of a network as a network of its own, which shares its modules."""
    part = fx.Graph()
    named = {node.name: node for node in graph.graph.nodes}
    copies = {named[segment.chain.boundary(segment.start)]: part.placeholder("x")}
    for node in nodes_between(graph.graph, segment):
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[named[segment.last]])
    return fx.GraphModule(graph, part)


def _replace(graph: fx.GraphModule, segment: Segment) -> None:
    convs, norms = [], []
    for link in segment.links:
        conv, norm = _parts(graph, link.layer.conv, link.layer.norm)
        convs.append(conv)
        norms.append(norm)
    projections = [
        None if skip.projection is None
        else _parts(graph, skip.projection.conv, skip.projection.norm)
        for skip in segment.skips
    ]  # fmt: skip
    linear = LinearSegment(segment, convs, norms, projections)
    inside = nodes_between(graph.graph, segment)
    source = next(n for n in graph.graph.nodes if n.name == segment.chain.boundary(segment.start))
    name = segment.links[0].layer.conv
    with graph.graph.inserting_before(inside[-1]):
        new = graph.graph.call_module(name, (source,))
    inside[-1].replace_all_uses_with(new)
    _erase(graph, inside)
    graph.set_submodule(name, linear)


def _parts(graph: fx.GraphModule, conv: str, norm: str | None) -> tuple[nn.Conv2d, nn.Module]:
    convolution = graph.get_submodule(conv)
    assert isinstance(convolution, nn.Conv2d)
    return convolution, nn.Identity() if norm is None else graph.get_submodule(norm)


def _remove_branch(graph: fx.GraphModule, segment: Segment) -> None:
    """Replace the residual add that spans a segment by its input or projection."""
    skip = segment.spanning
    assert skip is not None
    named = {node.name: node for node in graph.graph.nodes}
    inside = nodes_between(graph.graph, segment)
    source, add = named[segment.chain.boundary(segment.start)], named[skip.node]
    if skip.projection is None:
        named[segment.last].replace_all_uses_with(source)
    else:
        way = skip.projection.norm or skip.projection.conv
        stays = next(n for n in add.all_input_nodes if str(n.target) == way)
        named[segment.last].replace_all_uses_with(stays)
    _erase(graph, inside)


def _erase(graph: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Erase those nodes that nothing reads any more, with their modules."""
    for node in reversed(nodes):
        if not node.users:
            graph.graph.erase_node(node)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    for node in nodes:
        if node.op == "call_module" and node.target not in called:
            graph.delete_submodule(str(node.target))
