"""Cross-layer equalization of channel ranges (Nagel et al. 2019).

Between two layers, channel i may be divided by s_i in the first and multiplied by s_i in the
second, since relu(x / s) = relu(x) / s. With s_i = sqrt(r1_i / r2_i), r being the largest weight of
the channel on either side, both sides get the range sqrt(r1_i r2_i) (section 4.1, eq. 11).
It helps weights with one scale per tensor, in which one wide channel reduces the resolution of all
others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from secateur.onnx_ir.model import Graph, attribute
from secateur.quantization.scheme import weighted_nodes

_ROUNDS = 20
_CONVERGED = 1e-3
_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Pair:
    """Two layers with only an activation between them.

    Attributes:
        first: Layer that produces the channels.
        between: Relu or Clip nodes between them.
        second: Only reader of the channels; depthwise, or over all channels.
    """

    first: onnx.NodeProto
    between: tuple[onnx.NodeProto, ...]
    second: onnx.NodeProto


def find_pairs(model: onnx.ModelProto) -> list[Pair]:
    """The pairs of layers that can be equalized, in the graph's order.

    Layers with shared weights are excluded.
    """
    graph = Graph(model)
    layers = {node.name for node in weighted_nodes(graph)}
    pairs = []
    for first in weighted_nodes(graph):
        between: list[onnx.NodeProto] = []
        reader = _only_reader(graph, first.output[0])
        while reader is not None and reader.op_type in _ACTIVATIONS and _starts_at_0(graph, reader):
            between.append(reader)
            reader = _only_reader(graph, reader.output[0])
        if reader is not None and reader.name in layers and _fits(graph, first, reader):
            pairs.append(Pair(first, tuple(between), reader))
    return pairs


def equalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float graph with equal ranges on both sides of each pair.

    A clip to [0, b] between the two becomes a ReLU, as in section 5.1.1: divided by s_i, its bound
    would differ from channel to channel. The result equals ``model`` only where no bound is
    reached; its accuracy must be measured.
    """
    equalized = onnx.ModelProto()
    equalized.CopyFrom(model)
    pairs = find_pairs(equalized)
    weights = _Weights(equalized)
    for _ in range(_ROUNDS):
        if max((_balance(pair, weights) for pair in pairs), default=0.0) < _CONVERGED:
            break
    weights.write()
    for node in {node.name: node for pair in pairs for node in pair.between}.values():
        if node.op_type == "Clip":
            node.op_type = "Relu"
            del node.input[1:]
    return equalized


class _Weights:
    """The constants of a graph, in float64 during scaling."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, npt.NDArray[np.float64]] = {}

    def __getitem__(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self._values:
            self._values[name] = numpy_helper.to_array(self._tensors[name]).astype(np.float64)
        return self._values[name]

    def write(self) -> None:
        """Write changed constants back into the graph."""
        for name, value in self._values.items():
            self._tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


def _balance(pair: Pair, weights: _Weights) -> float:
    """Equalize one pair; return the largest |log s|."""
    rows = weights[pair.first.input[1]]
    columns = weights[pair.second.input[1]]
    depthwise = _is_depthwise(pair.second, columns.shape)
    row_range = np.abs(rows).reshape(len(rows), -1).max(axis=1)
    column_range = np.abs(columns if depthwise else np.swapaxes(columns, 0, 1))
    column_range = column_range.reshape(len(rows), -1).max(axis=1)
    alive = (row_range > 0) & (column_range > 0)
    factor = np.ones(len(rows))
    factor[alive] = np.sqrt(row_range[alive] / column_range[alive])
    shape = (-1,) + (1,) * (rows.ndim - 1)
    rows /= factor.reshape(shape)
    if len(pair.first.input) > 2:
        weights[pair.first.input[2]][:] /= factor
    if depthwise:
        columns *= factor.reshape((-1,) + (1,) * (columns.ndim - 1))
    else:
        columns *= factor.reshape((1, -1) + (1,) * (columns.ndim - 2))
    return float(np.abs(np.log(factor)).max())


def _only_reader(graph: Graph, name: str) -> onnx.NodeProto | None:
    readers = graph.consumers.get(name, [])
    return readers[0] if len(readers) == 1 and name not in graph.outputs else None


def _starts_at_0(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type == "Relu":
        return True
    low = graph.optional(node, 1)
    return low is not None and low.item() == 0.0


def _fits(graph: Graph, first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
    own = [name for node in (first, second) for name in node.input[1:] if name]
    if any(len(graph.consumers[name]) > 1 for name in own):
        return False
    over_all = attribute(second, "group", 1) == 1
    return over_all or _is_depthwise(second, tuple(graph.constants[second.input[1]].dims))


def _is_depthwise(node: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether each row of ``node``'s weight of ``shape`` reads one channel."""
    return node.op_type == "Conv" and shape[1] == 1 and shape[0] == attribute(node, "group", 1) > 1
