"""Widths that integer kernels are quick on: channels of zeros, up to whole blocks.

Kernels work on blocks of channels, and those that miss a block take the slow way. A convolution
makes a channel of zeros where its row is zero, and reads one without a trace where its column is;
activations, pools and depthwise layers in between hand the zeros on.
"""

from __future__ import annotations

import copy
from functools import partial
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
    find_readers,
    find_shapes,
    flattens,
    is_depthwise,
    mixes,
    replace_constant,
    store,
)
from secateur.onnx_graph import Graph, attribute

Layout = npt.NDArray[np.int64]
"""What a widened tensor holds: the numbers its channels had before, -1 for each of zeros."""


def pad_widths(model: onnx.ModelProto, multiple: int) -> onnx.ModelProto:
    """Return a graph of the same function that has whole blocks of channels where it can.

    What a convolution makes is widened where only convolutions and linear layers see it, perhaps
    by way of activations, pools, depthwise convolutions and concatenations. A Split of it gets one
    more piece, of zeros, and a Concat takes such pieces from the Splits that it reads if some of
    them fill its last block.

    A width that is no multiple is widened to the next one, unless it is below ``multiple`` and no
    depthwise convolution reads it, a linear layer reads its pixels one by one, it goes whole into a
    Concat whose width is a multiple already, or is split and no Concat has a use for its zeros.

    Args:
        model: A float graph of :func:`secateur.export.export_onnx`; left as it is. Its tensors are
            (N, C, H, W), only N unknown.
        multiple: What widths become a multiple of.

    Raises:
        ValueError: ``multiple`` is not positive.
        onnx.shape_inference.InferenceError: The graph breaks ONNX's rules.
    """
    if multiple < 1:
        raise ValueError(f"need a positive multiple, found {multiple}")
    shapes, narrow = find_shapes(model), set[str]()
    while True:
        padded = copy.deepcopy(model)
        graph = Graph(padded)
        padder = _Padder(graph, shapes, multiple, narrow)
        for node in graph.nodes:
            padder.pad(node)
        idle = padder.idle()
        if not idle:
            break
        narrow |= idle
    if padder.layouts:
        store(padded, graph, graph.nodes)
    return padded


class _Padder:
    """Pads one node of a graph after another, each after those that it reads.

    Attributes:
        layouts: Of the tensors that are wider than they were.
        zeros: By each other piece of a Split, the piece of zeros beside it.
    """

    def __init__(self, graph: Graph, shapes: Shapes, multiple: int, narrow: set[str]) -> None:
        self.graph = graph
        self.layouts: dict[str, Layout] = {}
        self.zeros: dict[str, str] = {}
        self._shapes = shapes
        self._multiple = multiple
        self._narrow = narrow  # what is not to be widened
        self._taken: set[str] = set()

    def idle(self) -> set[str]:
        """What was widened and split for nothing: no node reads its piece of zeros.

        Quantization leaves what nobody reads in float, and all of such a Split with it.
        """
        found = set()
        for piece, zeros in self.zeros.items():
            if zeros not in self._taken:
                node = self.graph.producer[piece]
                while not (mixes(self.graph, node) or _joins(self._shapes, node)):
                    node = self.graph.producer[node.input[0]]
                found.add(node.output[0])
        return found

    def pad(self, node: onnx.NodeProto) -> None:
        """Fit ``node`` to what it reads, and widen what it makes if that gains something."""
        layout = self.layouts.get(node.input[0]) if node.input else None
        if _joins(self._shapes, node):
            self._pad_join(node)
        elif mixes(self.graph, node):
            if layout is not None:
                before = int(np.count_nonzero(layout >= 0))
                change_columns(self.graph, node, before, partial(_lay_out, layout))
            if node.op_type == "Conv":
                self._pad_rows(node)
        elif layout is not None and node.op_type == "Split":
            self._pad_split(node, layout)
        elif layout is not None:
            self._hand_on(node, layout)

    def _pad_rows(self, node: onnx.NodeProto) -> None:
        width = self.graph.constants[node.input[1]].dims[0]
        missing = self._missing(node.output[0], width)
        if missing:
            layout = self.layouts[node.output[0]] = _append_zeros(np.arange(width), missing)
            change_rows(self.graph, node, partial(_lay_out, layout))

    def _pad_split(self, node: onnx.NodeProto, layout: Layout) -> None:
        """Add a piece of the zeros, which are the last channels."""
        zeros = f"{node.output[0]}/zeros"
        self.zeros |= dict.fromkeys(node.output, zeros)
        missing = int(np.count_nonzero(layout < 0))
        self.layouts[zeros] = _append_zeros(layout[:0], missing)
        sizes = self.graph.constant(node.input[1]).tolist()
        node.input[1] = add_sizes(self.graph, [*sizes, missing])
        node.output.append(zeros)

    def _pad_join(self, node: onnx.NodeProto) -> None:
        """Lay the layouts side by side, and fill the last block with pieces of zeros."""
        parts, before = [], 0
        for name in node.input:
            width = self._shapes[name][1]
            part = self.layouts.get(name, np.arange(width))
            parts.append(np.where(part < 0, -1, part + before))
            before += width
        layout = np.concatenate(parts)
        beside = dict.fromkeys(self.zeros[name] for name in node.input if name in self.zeros)
        unread_first = sorted(beside, key=self._taken.__contains__)
        spare = {name: len(self.layouts[name]) for name in unread_first}
        taken = _choose(spare, self._missing(node.output[0], len(layout)))
        node.input.extend(taken)
        self._taken |= set(taken)
        layout = _append_zeros(layout, sum(spare[name] for name in taken))
        if len(layout) > before:
            self.layouts[node.output[0]] = layout

    def _hand_on(self, node: onnx.NodeProto, layout: Layout) -> None:
        """Fit a node that works on each channel alone, or lays them out one after another."""
        if flattens(self._shapes, node):
            layout = _flatten(layout, prod(self._shapes[node.input[0]][2:]))
            if node.op_type == "Reshape":
                rows, columns = self.graph.constant(node.input[1]).tolist()
                shape = np.array([rows, len(layout) if columns > 0 else columns])
                replace_constant(self.graph, node, 1, shape)
        if is_depthwise(self.graph, node):
            change_rows(self.graph, node, partial(_lay_out, layout))
            next(item for item in node.attribute if item.name == "group").i = len(layout)
        self.layouts[node.output[0]] = layout

    def _missing(self, name: str, width: int) -> int:
        """How many channels of zeros ``name`` should get."""
        if name in self._narrow:
            return 0
        readers = find_readers(self.graph, name, self._passes, self._ends)
        gains = width >= self._multiple or any(is_depthwise(self.graph, n) for n in readers)
        return -width % self._multiple if readers and gains else 0

    def _ends(self, node: onnx.NodeProto) -> bool:
        """Tell whether ``node`` takes zeros behind all other channels, and hands none on."""
        by_sizes = len(node.input) > 1 and node.input[1] in self.graph.constants
        if node.op_type == "Split" and by_sizes and attribute(node, "axis", 0) == 1:
            return True
        return mixes(self.graph, node)

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Tell whether ``node`` takes zeros among its channels and hands them on."""
        if _joins(self._shapes, node):
            # Zeros end up between channels, where a Split does not look for them.
            mixing = partial(mixes, self.graph)
            free = find_readers(self.graph, node.output[0], self._passes, mixing)
            return bool(free) and self._shapes[node.output[0]][1] % self._multiple > 0
        if flattens(self._shapes, node):
            # Of several pixels, each channel of zeros would cost a linear layer as many columns.
            pixels = prod(self._shapes[node.input[0]][2:])
            return pixels == 1 and all(name in self.graph.constants for name in node.input[1:])
        pools = node.op_type in POOLS and len(node.output) == 1
        return pools or _keeps_zero(self.graph, node) or is_depthwise(self.graph, node)


def _joins(shapes: Shapes, node: onnx.NodeProto) -> bool:
    """Tell whether ``node`` concatenates channels, whose numbers are known."""
    if node.op_type != "Concat":
        return False
    known = [shapes.get(name, ()) for name in (*node.input, *node.output)]
    if not all(len(shape) > 1 and shape[1] for shape in known):
        return False
    return attribute(node, "axis") in (1, 1 - len(known[0]))


def _keeps_zero(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tell whether ``node`` is an activation that makes 0 of 0."""
    if node.op_type != "Clip":
        return node.op_type == "Relu"
    if any(name not in graph.constants for name in node.input[1:] if name):
        return False
    low, high = graph.optional(node, 1), graph.optional(node, 2)
    return bool((low is None or low <= 0) and (high is None or high >= 0))


def _append_zeros(layout: Layout, missing: int) -> Layout:
    return np.pad(layout, (0, missing), constant_values=-1)


def _lay_out(layout: Layout, rows: npt.NDArray) -> npt.NDArray:
    """Put each of ``rows`` where the layout has it, and zeros elsewhere."""
    laid = rows[layout]
    laid[layout < 0] = 0
    return laid


def _flatten(layout: Layout, pixels: int) -> Layout:
    """The layout of single pixels, each channel's side by side."""
    cells = layout[:, None] * pixels + np.arange(pixels)
    cells[layout < 0] = -1
    return cells.ravel()


def _choose(sizes: dict[str, int], total: int) -> tuple[str, ...]:
    """Choose the first and fewest of the named sizes that make up ``total``; none if none do."""
    found: dict[int, tuple[str, ...]] = {0: ()}
    for name, size in sizes.items():
        for reached, names in list(found.items()):
            chosen = (*names, name)
            if len(chosen) < len(found.get(reached + size, (*chosen, ""))):
                found[reached + size] = chosen
    return found.get(total, ())
