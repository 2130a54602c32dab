"""Straight routes through a float graph: channels in an order that nothing has to move.

A channel shuffle (Zhang et al. 2018, arXiv 1707.01083) is a fixed permutation, and so is whatever
splits and concatenations between shuffles make of it. Convolutions on both sides do not care in
which order channels come, so the permutation goes into the order of their weights, once; a channel
then goes straight from the operator that makes it to those that read it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import prod

import numpy as np
import numpy.typing as npt
import onnx

from secateur.onnx_channels import (
    POOLS,
    Shapes,
    add_sizes,
    change_columns,
    change_rows,
    find_makers,
    find_readers,
    find_shapes,
    flattens,
    is_depthwise,
    mixes,
    store,
)
from secateur.onnx_graph import Graph, activation_inputs, attribute, tidy

ELEMENTWISE = ("Relu", "Clip", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh")

Labels = npt.NDArray[np.int64]
Move = Callable[[list[Labels]], list[Labels]]
Pieces = dict[str, dict[str, list[int]]]
"""By source, the tensors it is split into, and what they hold; itself if it stays whole."""


def straighten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of the same function that permutes weights instead of shuffling channels.

    Neighboring nodes that only move channels are replaced together, where each tensor that enters
    them comes from a convolution and each that leaves them goes to convolutions or linear layers,
    perhaps by way of activations, pools and depthwise convolutions. What enters is then made in
    the order of its readers, split once, and each reader gets its pieces concatenated. Where that
    does not hold, or nothing is shuffled, nodes stay; a graph where all do is the same to the byte.

    Args:
        model: A float graph of :func:`secateur.export.export_onnx`; left as it is. Its tensors are
            (N, C, H, W), only N unknown.

    Raises:
        onnx.shape_inference.InferenceError: The graph breaks ONNX's rules.
    """
    straight = copy.deepcopy(model)
    graph, shapes = Graph(straight), find_shapes(model)
    router = _Router(graph, shapes)
    for region in _find_regions(graph, shapes):
        router.straighten(region)
    if router.gone:
        store(straight, graph, router.nodes())
        straight.graph.CopyFrom(tidy(straight).graph)
    return straight


@dataclass
class _Region:
    """Neighboring nodes that only move channels.

    Attributes:
        nodes: In the graph's order.
        labels: What each tensor in the region holds: one number per channel of a source.
        sources: Tensors that enter.
        sinks: Tensors, sources among them, that something outside reads.
    """

    nodes: list[onnx.NodeProto]
    labels: dict[str, Labels] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    sinks: list[str] = field(default_factory=list)

    def is_shuffled(self) -> bool:
        """Tell whether channels are shuffled, none comes twice, and all ends are images."""
        ends = [self.labels[name] for name in (*self.sources, *self.sinks)]
        return any(node.op_type == "Transpose" for node in self.nodes) and all(
            labels.ndim == 1 and len(np.unique(labels)) == len(labels) for labels in ends
        )


def _find_regions(graph: Graph, shapes: Shapes) -> list[_Region]:
    """Group nodes that only move channels by the tensors they share."""
    moves: dict[str, Move] = {}
    groups: list[set[str]] = []
    for node in graph.nodes:
        move = _movement(graph, shapes, node)
        if move is None:
            continue
        moves[node.output[0]] = move
        ends = {*activation_inputs(graph, node), *node.output}
        touching = [group for group in groups if group & ends]
        groups = [group for group in groups if not group & ends] + [ends.union(*touching)]
    return [_trace(graph, shapes, moves, group) for group in groups]


def _trace(graph: Graph, shapes: Shapes, moves: dict[str, Move], tensors: set[str]) -> _Region:
    """Follow the channels through the region of ``tensors``."""
    inside = tensors & moves.keys()
    region = _Region([node for node in graph.nodes if node.output[0] in inside])
    labels, total = region.labels, 0
    for node in region.nodes:
        names = activation_inputs(graph, node)
        for name in names:
            if name not in labels:
                channels = shapes[name][1:-2]
                labels[name] = np.arange(total, total + prod(channels)).reshape(channels)
                total += prod(channels)
                region.sources.append(name)
        moved = moves[node.output[0]]([labels[name] for name in names])
        labels |= zip(node.output, moved, strict=True)
    region.sinks = [
        name
        for name in labels
        if name in graph.outputs
        or any(node.output[0] not in inside for node in graph.consumers.get(name, []))
    ]
    return region


def _movement(graph: Graph, shapes: Shapes, node: onnx.NodeProto) -> Move | None:
    """How ``node`` moves channels, or None if it does anything else.

    Every dimension between the batch and the pixels counts as channels.
    """
    inputs = activation_inputs(graph, node)
    ends = [shapes.get(name, ()) for name in (*inputs, *node.output)]
    if not inputs or any(len(shape) < 4 or not all(shape[1:]) for shape in ends):
        return None
    rank, (before, after) = len(ends[0]), (ends[0], ends[-1])
    on_channels = attribute(node, "axis", 0) in (1, 1 - rank)
    match node.op_type:
        case "Concat" if on_channels and len(inputs) == len(node.input):
            return lambda labels: [np.concatenate(labels)]
        case "Split" if on_channels:
            bounds = np.cumsum([shapes[name][1] for name in node.output])[:-1]
            return lambda labels: np.split(labels[0], bounds)
        case "Slice":
            return _window(graph, node, rank)
        case "Transpose":
            perm: list[int] = attribute(node, "perm", [])
            if perm[:1] == [0] and perm[-2:] == [rank - 2, rank - 1]:
                return lambda labels: [labels[0].transpose([axis - 1 for axis in perm[1:-2]])]
        case "Reshape" if before[-2:] == after[-2:] and prod(before[1:]) == prod(after[1:]):
            return lambda labels: [labels[0].reshape(after[1:-2])]
    return None


def _window(graph: Graph, node: onnx.NodeProto, rank: int) -> Move | None:
    """How a Slice of channels between constant bounds moves them."""
    if len(node.input) < 4 or any(name not in graph.constants for name in node.input[1:]):
        return None
    start, end, axes, *step = (graph.constant(name).tolist() for name in node.input[1:])
    if axes not in ([1], [1 - rank]):
        return None
    window = slice(start[0], end[0], step[0][0] if step else 1)
    return lambda labels: [labels[0][window]]


class _Router:
    """Replaces regions of a graph, whose nodes and constants it changes.

    Attributes:
        gone: The first tensor of each node that goes.
    """

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph = graph
        self.gone: set[str] = set()
        self._passes = partial(_keeps_channels, graph, shapes)
        self._ends = partial(mixes, graph)
        self._behind: dict[str, list[onnx.NodeProto]] = {}
        self._renamed: dict[str, str] = {}

    def straighten(self, region: _Region) -> None:
        """Replace ``region`` if the order of channels is free at all its ends."""
        inside = {node.output[0] for node in region.nodes}
        makers = [find_makers(self.graph, name, self._passes) for name in region.sources]
        readers = [
            find_readers(self.graph, name, self._passes, self._ends, inside)
            for name in region.sinks
        ]
        if not (region.is_shuffled() and all(makers) and all(readers)):
            return
        pieces = _pieces(region)
        for name, nodes in zip(region.sources, makers, strict=True):
            order = _order(region.labels[name], pieces[name])
            for node in nodes:
                change_rows(self.graph, node, partial(np.take, indices=order, axis=0))
        for name, nodes in zip(region.sinks, readers, strict=True):
            order = _order(region.labels[name], _parts(pieces, region.labels[name]))
            change = partial(np.take, indices=order, axis=0)
            for node in nodes:
                if mixes(self.graph, node):
                    change_columns(self.graph, node, len(order), change)
                else:
                    change_rows(self.graph, node, change)
        self._lay(region, pieces)
        self.gone |= inside

    def _lay(self, region: _Region, pieces: Pieces) -> None:
        """Put a Split behind each source and a Concat in the place of each sink."""
        for source, groups in pieces.items():
            if len(groups) > 1:
                sizes = add_sizes(self.graph, [len(group) for group in groups.values()])
                self._insert(source, "Split", [source, sizes], list(groups))
        joined: dict[tuple[str, ...], str] = {}
        for sink in region.sinks:
            parts = tuple(_parts(pieces, region.labels[sink]))
            if len(parts) > 1 and parts not in joined:
                joined[parts] = f"{sink}/joined"
                self._insert(sink, "Concat", parts, [joined[parts]])
            self._renamed[sink] = joined.get(parts, parts[0])

    def _insert(self, behind: str, kind: str, inputs: Sequence[str], outputs: list[str]) -> None:
        node = onnx.helper.make_node(kind, inputs, outputs, axis=1)
        self._behind.setdefault(behind, []).append(node)

    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes of the whole graph after all replacements."""
        nodes = []
        for node in self.graph.nodes:
            if node.output[0] not in self.gone:
                node.input[:] = [self._renamed.get(name, name) for name in node.input]
                nodes.append(node)
            for name in node.output:
                nodes += self._behind.get(name, [])
        return nodes


def _pieces(region: _Region) -> Pieces:
    """Group the channels of each source by the sinks that hold them."""
    held = [set(region.labels[name].tolist()) for name in region.sinks]

    def holders(label: int) -> list[int]:
        return [index for index, labels in enumerate(held) if label in labels]

    pieces = {}
    for source in region.sources:
        labels = sorted(region.labels[source].tolist(), key=holders)
        groups = [list(group) for _, group in groupby(labels, holders)]
        names = [f"{source}/{index}" for index in range(len(groups))]
        pieces[source] = dict(zip(names if len(groups) > 1 else [source], groups, strict=True))
    return pieces


def _parts(pieces: Pieces, sink: Labels) -> dict[str, list[int]]:
    """The pieces of which ``sink`` consists."""
    wanted = set(sink.tolist())
    every = [item for groups in pieces.values() for item in groups.items()]
    return {name: labels for name, labels in every if labels[0] in wanted}


def _order(old: Labels, new: dict[str, list[int]]) -> list[int]:
    """Where the labels of the pieces ``new`` stand in ``old``."""
    place = {label: index for index, label in enumerate(old.tolist())}
    return [place[label] for labels in new.values() for label in labels]


def _keeps_channels(graph: Graph, shapes: Shapes, node: onnx.NodeProto) -> bool:
    """Tell whether ``node`` works on each channel alone, or lays them out one after another."""
    alike = node.op_type in (*ELEMENTWISE, *POOLS) and len(node.output) == 1
    return alike or is_depthwise(graph, node) or flattens(shapes, node)
