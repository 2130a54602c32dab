"""Padding of depthwise layers to full blocks of channels, on which integer kernels are fast."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx

from secateur.onnx_ir.model import Graph
from secateur.onnx_ir.shuffles import (
    change_columns,
    change_rows,
    find_makers,
    find_readers,
    is_depthwise,
    is_private,
    mixes,
    store,
)


def pad_widths(model: onnx.ModelProto, multiple: int) -> onnx.ModelProto:
    """Return an equivalent graph whose depthwise layers have widths that fill blocks of channels.

    Integer kernels work on blocks of channels. Channels of zeros are appended to depthwise
    convolutions that are separated from ordinary convolutions by activations only.

    Args:
        model: A float graph of :func:`secateur.onnx_ir.export.export_onnx`; not modified.
        multiple: Widths of depthwise layers become multiples of this number.

    Raises:
        ValueError: ``multiple`` is not positive.
    """
    if multiple < 1:
        raise ValueError(f"need a positive multiple, found {multiple}")
    padded = copy.deepcopy(model)
    graph = Graph(padded)
    keeps_zero = partial(_keeps_zero, graph)
    for node in graph.nodes:
        if not is_depthwise(graph, node) or not is_private(graph, node.input[0]):
            continue
        makers = find_makers(graph, node.input[0], keeps_zero)
        readers = find_readers(graph, node.output[0], keeps_zero)
        missing = -graph.constants[node.input[1]].dims[0] % multiple
        if makers and readers and missing:
            _widen(graph, [node, *makers], readers, missing)
    store(padded, graph, graph.nodes)
    return padded


def _keeps_zero(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether ``node`` is an activation that maps 0 to 0."""
    if node.op_type != "Clip":
        return node.op_type == "Relu"
    if any(name not in graph.constants for name in node.input[1:] if name):
        return False
    low, high = graph.optional(node, 1), graph.optional(node, 2)
    return bool((low is None or low <= 0) and (high is None or high >= 0))


def _widen(
    graph: Graph, makers: list[onnx.NodeProto], readers: list[onnx.NodeProto], missing: int
) -> None:
    """Append ``missing`` channels of zeros to outputs of ``makers`` and inputs of ``readers``."""

    def append(rows: npt.NDArray) -> npt.NDArray:
        return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])

    width = graph.constants[makers[0].input[1]].dims[0]
    for node in filter(partial(mixes, graph), readers):
        change_columns(graph, node, width, append)
    for node in makers:
        change_rows(graph, node, append)
        for item in node.attribute:
            if item.name == "group" and item.i == width:
                item.i += missing
