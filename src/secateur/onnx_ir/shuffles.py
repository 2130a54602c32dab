"""Folds channel shuffles into the order of adjacent weights.

A channel shuffle (Zhang et al. 2018, arXiv 1707.01083) is a fixed permutation, also together with
splits and concatenations around it. Convolutions accept channels in any order if their weights are
permuted. Therefore the permutation is applied to the weights once, and channels pass directly from
the operator that produces them to those that read them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, groupby
from math import prod

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from secateur.onnx_ir.model import Graph, activation_inputs, attribute, is_layer, tidy

ELEMENTWISE = ("Relu", "Clip", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")

Labels = npt.NDArray[np.int64]
Move = Callable[[list[Labels]], list[Labels]]
Change = Callable[[npt.NDArray], npt.NDArray]
Test = Callable[[onnx.NodeProto], bool]
Pieces = dict[str, dict[str, list[int]]]
"""From source to the tensors it is split into and their labels; the source itself if it is not
split."""
Shapes = dict[str, tuple[int, ...]]
"""Shape of each tensor; 0 for unknown dimensions."""


def straighten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent graph with permuted weights in place of channel shuffles.

    Adjacent nodes that only move channels form a region. A region is replaced if all its inputs
    come from convolutions and all its outputs go to convolutions or linear layers, possibly through
    activations, pools and depthwise convolutions. Its inputs are then produced in the order of
    their readers and split once, and each reader gets the concatenation of its pieces. Other
    regions, and those without a shuffle, are kept. A graph without replacements is returned
    unchanged, byte for byte.

    Args:
        model: A float graph of :func:`secateur.onnx_ir.export.export_onnx`; not modified. Its
            tensors are (N, C, H, W) with known C, H and W.

    Raises:
        onnx.shape_inference.InferenceError: The graph is invalid.
    """
    straight = copy.deepcopy(model)
    graph, shapes = Graph(straight), _shapes(model)
    router = _Router(graph, shapes)
    for region in _find_regions(graph, shapes):
        router.straighten(region)
    if router.gone:
        store(straight, graph, router.nodes())
        straight.graph.CopyFrom(tidy(straight).graph)
    return straight


@dataclass
class _Region:
    """Adjacent nodes that only move channels.

    Attributes:
        nodes: In the graph's order.
        labels: Content of each tensor in the region: one number for each channel of a source.
        sources: Input tensors.
        sinks: Tensors, possibly sources, that nodes outside the region read.
    """

    nodes: list[onnx.NodeProto]
    labels: dict[str, Labels] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    sinks: list[str] = field(default_factory=list)

    def is_shuffled(self) -> bool:
        """Whether channels are shuffled, none occurs twice, and inputs and outputs are images."""
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
    """Return the movement of channels by ``node``, or None for other operations.

    All dimensions between the batch and the pixels are channels.
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
    """The movement of channels by a Slice with constant bounds."""
    if len(node.input) < 4 or any(name not in graph.constants for name in node.input[1:]):
        return None
    start, end, axes, *step = (graph.constant(name).tolist() for name in node.input[1:])
    if axes not in ([1], [1 - rank]):
        return None
    window = slice(start[0], end[0], step[0][0] if step else 1)
    return lambda labels: [labels[0][window]]


class _Router:
    """Replaces regions of a graph; modifies its nodes and constants.

    Attributes:
        gone: First output of each removed node.
    """

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph = graph
        self.gone: set[str] = set()
        self._passes = partial(_keeps_channels, graph, shapes)
        self._behind: dict[str, list[onnx.NodeProto]] = {}
        self._renamed: dict[str, str] = {}

    def straighten(self, region: _Region) -> None:
        """Replace ``region`` if the order of channels is free at all its inputs and outputs."""
        inside = {node.output[0] for node in region.nodes}
        makers = [find_makers(self.graph, name, self._passes) for name in region.sources]
        readers = [find_readers(self.graph, name, self._passes, inside) for name in region.sinks]
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
        """Insert a Split after each source and a Concat in place of each sink."""
        for source, groups in pieces.items():
            if len(groups) > 1:
                sizes = self._constant([len(group) for group in groups.values()])
                self._insert(source, "Split", [source, sizes], list(groups))
        joined: dict[tuple[str, ...], str] = {}
        for sink in region.sinks:
            parts = tuple(_parts(pieces, region.labels[sink]))
            if len(parts) > 1 and parts not in joined:
                joined[parts] = f"{sink}/joined"
                self._insert(sink, "Concat", parts, [joined[parts]])
            self._renamed[sink] = joined.get(parts, parts[0])

    def _constant(self, sizes: list[int]) -> str:
        # The name contains the value, so that equal sizes share a constant.
        name = "sizes_" + "_".join(map(str, sizes))
        self.graph.constants[name] = numpy_helper.from_array(np.array(sizes, np.int64), name)
        return name

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
    contents = [set(region.labels[name].tolist()) for name in region.sinks]

    def holders(label: int) -> list[int]:
        return [index for index, labels in enumerate(contents) if label in labels]

    pieces = {}
    for source in region.sources:
        labels = sorted(region.labels[source].tolist(), key=holders)
        groups = [list(group) for _, group in groupby(labels, holders)]
        names = [f"{source}/{index}" for index in range(len(groups))]
        pieces[source] = dict(zip(names if len(groups) > 1 else [source], groups, strict=True))
    return pieces


def _parts(pieces: Pieces, sink: Labels) -> dict[str, list[int]]:
    """The pieces that form ``sink``."""
    sink_labels = set(sink.tolist())
    every = [item for groups in pieces.values() for item in groups.items()]
    return {name: labels for name, labels in every if labels[0] in sink_labels}


def _order(old: Labels, new: dict[str, list[int]]) -> list[int]:
    """Positions in ``old`` of the labels of the pieces ``new``."""
    place = {label: index for index, label in enumerate(old.tolist())}
    return [place[label] for labels in new.values() for label in labels]


def find_makers(graph: Graph, name: str, passes: Test) -> list[onnx.NodeProto]:
    """Nodes that produce the channels of ``name``, back to a convolution; empty if not free."""
    nodes, node = [], graph.producer.get(name)
    while node is not None and passes(node) and is_private(graph, node.input[0]):
        nodes.append(node)
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type != "Conv" or not mixes(graph, node):
        return []
    return [*nodes, node]


def find_readers(
    graph: Graph, name: str, passes: Test, skip: Collection[str] = ()
) -> list[onnx.NodeProto]:
    """Nodes that read the channels of ``name``, up to those that mix all; empty if not free.

    Nodes whose first output is in ``skip`` are ignored.
    """
    if name in graph.outputs:
        return []
    readers = []
    for node in graph.consumers.get(name, []):
        if node.output[0] in skip:
            continue
        readers.append(node)
        if not mixes(graph, node):
            further = find_readers(graph, node.output[0], passes) if passes(node) else []
            if not further:
                return []
            readers += further
    return readers


def is_private(graph: Graph, name: str) -> bool:
    """Whether exactly one node reads ``name``."""
    return len(graph.consumers.get(name, [])) == 1 and name not in graph.outputs


def mixes(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether each row of ``node``'s weights reads all channels."""
    return is_layer(graph, node) and attribute(node, "group", 1) == 1


def is_depthwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether each row of ``node``'s weights reads the channel of the same index only."""
    if node.op_type != "Conv" or not is_layer(graph, node):
        return False
    group = attribute(node, "group", 1)
    return group != 1 and (group, 1) == tuple(graph.constants[node.input[1]].dims[:2])


def _keeps_channels(graph: Graph, shapes: Shapes, node: onnx.NodeProto) -> bool:
    """Whether ``node`` works on each channel separately, or flattens channels in order."""
    if node.op_type in ("Flatten", "Reshape"):
        before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        return len(before) > 1 and len(after) == 2 and after[1] == prod(before[1:]) > 0
    alike = node.op_type in (*ELEMENTWISE, *POOLS) and len(node.output) == 1
    return alike or is_depthwise(graph, node)


def change_rows(graph: Graph, node: onnx.NodeProto, change: Change) -> None:
    """Change the rows of ``node``'s weights and biases, which produce its channels."""
    if node.op_type == "Conv":
        for index, name in enumerate(node.input[1:], 1):
            if name:
                _replace(graph, node, index, change(graph.constant(name)))


def change_columns(graph: Graph, node: onnx.NodeProto, channels: int, change: Change) -> None:
    """Change the columns of ``node``'s weights, a block for each of its input ``channels``."""
    weight = graph.constant(node.input[1])
    blocks = weight.reshape(len(weight), channels, -1).swapaxes(0, 1)
    changed = change(blocks).swapaxes(0, 1)
    _replace(graph, node, 1, changed.reshape(len(weight), -1, *weight.shape[2:]))


def _replace(graph: Graph, node: onnx.NodeProto, index: int, value: npt.NDArray) -> None:
    """Set a constant input of ``node``; constants shared with other nodes are not changed."""
    name = node.input[index]
    if sum(list(other.input).count(name) for other in graph.nodes) > 1:
        others = (f"{name}/{number}" for number in count(1))
        name = next(other for other in others if other not in graph.constants)
    graph.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    node.input[index] = name


def _shapes(model: onnx.ModelProto) -> Shapes:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in [*graph.input, *graph.value_info, *graph.output]
    }


def store(model: onnx.ModelProto, graph: Graph, nodes: list[onnx.NodeProto]) -> None:
    """Set the nodes of ``model``, and its constants to those of ``graph`` that they read."""
    read = {name for node in nodes for name in node.input}
    constants = [tensor for name, tensor in graph.constants.items() if name in read]
    old = model.graph
    model.graph.CopyFrom(onnx.helper.make_graph(nodes, old.name, old.input, old.output, constants))
