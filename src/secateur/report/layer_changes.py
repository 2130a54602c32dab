"""Changes of layers by compression, from two ONNX files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import onnx

from secateur.onnx_ir.model import Graph, attribute, read_model
from secateur.profiling import explain
from secateur.report.contents import Layer

REPEATS = 30
"""Number of runs for the median time of a layer."""


def layer_changes(
    before: Path, after: Path, threads: int = 1, repeats: int = REPEATS
) -> tuple[Layer, ...]:
    """Match the layers of two files, and time each of them in ONNX Runtime.

    Layers are matched in order by operator, kernel, stride and depthwise or not, also if blocks
    were removed.

    Args:
        before: The reference file.
        after: The compressed file, float or quantized.
        threads: Threads inside one operator.
        repeats: Timed runs; 0 disables timing.

    Raises:
        SecateurError: A file is not an image classifier in ONNX, or cannot be run.
    """
    originals, results = _layers(read_model(before)), _layers(read_model(after))
    times_before, times_after = (
        _microseconds(path, threads, repeats) if repeats else {} for path in (before, after)
    )
    match = SequenceMatcher(
        None, [one.signature for one in originals], [one.signature for one in results], False
    )
    partner = {
        block.a + step: results[block.b + step]
        for block in match.get_matching_blocks()
        for step in range(block.size)
    }
    labels = _labels(originals)
    return tuple(
        Layer(
            name=one.name,
            label=label,
            block=one.block,
            operator=one.operator,
            output=one.output,
            channels_before=one.channels,
            channels_after=partner[i].channels if i in partner else 0,
            bits=partner[i].bits if i in partner else one.bits,
            microseconds_before=_time(one, times_before),
            microseconds_after=_time(partner[i], times_after) if i in partner else None,
        )
        for i, (one, label) in enumerate(zip(originals, labels, strict=True))
    )


@dataclass(frozen=True)
class _Layer:
    """One convolution or linear layer of a file."""

    name: str
    aliases: frozenset[str]
    operator: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    depthwise: bool
    channels: int
    bits: int
    output: tuple[int, ...]
    block: str

    @property
    def signature(self) -> tuple[object, ...]:
        return self.operator, self.kernel, self.stride, self.depthwise

    @property
    def kind(self) -> str:
        if self.operator != "Conv":
            return "linear"
        sides = "×".join(map(str, self.kernel)) or "1"
        return f"depthwise {sides}" if self.depthwise else sides


def _layers(model: onnx.ModelProto) -> list[_Layer]:
    graph, shapes = Graph(model), _shapes(model)
    nodes = [(node, weight) for node in graph.nodes if (weight := _weight(graph, node)) is not None]
    blocks = _blocks(graph, shapes, [node for node, _ in nodes])
    return [
        _layer(graph, node, weight, shapes, block)
        for (node, weight), block in zip(nodes, blocks, strict=True)
    ]


def _layer(
    graph: Graph,
    node: onnx.NodeProto,
    weight: onnx.TensorProto,
    shapes: dict[str, tuple[int, ...]],
    block: str,
) -> _Layer:
    groups = int(attribute(node, "group", 1))
    transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
    channels = weight.dims[0] if node.op_type == "Conv" or transposed else weight.dims[-1]
    readers = {reader.name for reader in graph.consumers.get(node.output[0], [])}
    return _Layer(
        name=node.name,
        aliases=frozenset({node.name} | readers),
        operator=node.op_type,
        kernel=tuple(weight.dims[2:]),
        stride=tuple(attribute(node, "strides", ())),
        depthwise=groups > 1 and weight.dims[1] == 1,
        channels=channels,
        bits=_bits(weight),
        output=shapes.get(node.output[0], ())[1:],
        block=block,
    )


def _weight(graph: Graph, node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The constant weight of a layer, before its dequantizer if it has one."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    name = node.input[1]
    if name in graph.producer and graph.producer[name].op_type == "DequantizeLinear":
        name = graph.producer[name].input[0]
    weight = graph.constants.get(name)
    return None if weight is None or len(weight.dims) < 2 else weight


def _bits(weight: onnx.TensorProto) -> int:
    """Bits of the weight's integers; 32 for floats."""
    if weight.data_type == onnx.TensorProto.FLOAT:
        return 32
    values = onnx.numpy_helper.to_array(weight).astype("int64")
    most = max(int(values.max()), -int(values.min()) - 1, 0)
    return most.bit_length() + 1


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in [*inferred.graph.value_info, *inferred.graph.output]
    }


def _blocks(
    graph: Graph, shapes: dict[str, tuple[int, ...]], layers: list[onnx.NodeProto]
) -> list[str]:
    """Name the block of each layer: blocks are between two joins, stages have one resolution.

    Layers before the first block are the stem, layers after the last one the head. A network
    without joins has one block for each resolution.
    """
    joins = [i for i, node in enumerate(graph.nodes) if _is_join(graph, node)]
    place = {id(node): i for i, node in enumerate(graph.nodes)}
    numbers = [sum(join < place[id(node)] for join in joins) for node in layers]
    sides = {
        number: shapes.get(graph.nodes[join].output[0], ())[2:] for number, join in enumerate(joins)
    }
    names, stage, block = {}, 0, 0
    for number in range(len(joins)):
        new = number == 0 or sides[number] != sides[number - 1]
        stage, block = (stage + 1, 1) if new else (stage, block + 1)
        names[number] = f"stage {stage}, block {block}"
    stem = _stem_length(graph, layers, numbers, joins)
    result = []
    for i, (node, number) in enumerate(zip(layers, numbers, strict=True)):
        if node is layers[-1] and node.op_type != "Conv":
            result.append("classifier")
        elif i < stem:
            result.append("stem")
        elif joins:
            result.append(names.get(number, "head"))
        else:
            result.append(_side_name(shapes.get(node.output[0], ())))
    return result


def _is_join(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node adds or concatenates two activations."""
    inputs = [name for name in node.input if name not in graph.constants]
    return node.op_type in ("Add", "Concat") and len(inputs) > 1


def _stem_length(
    graph: Graph, layers: list[onnx.NodeProto], numbers: list[int], joins: list[int]
) -> int:
    """Number of layers before the first split of the data."""
    if not joins:
        return 0
    length = 0
    for node, number in zip(layers, numbers, strict=True):
        if number or (length and _is_split(graph, node.input[0])):
            break
        length += 1
    return length


def _is_split(graph: Graph, name: str) -> bool:
    """Whether a tensor has several readers, ignoring quantizers."""
    while name in graph.producer and graph.producer[name].op_type in (
        "QuantizeLinear",
        "DequantizeLinear",
    ):
        if len(graph.consumers.get(name, [])) > 1:
            return True
        name = graph.producer[name].input[0]
    return len(graph.consumers.get(name, [])) > 1


def _side_name(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]}×{shape[-1]} pixels" if len(shape) == 4 else "fully connected"


def _labels(layers: list[_Layer]) -> Iterator[str]:
    """Unique names: block, kind and, for several layers of a kind in a block, a number."""
    total = Counter((layer.block, layer.kind) for layer in layers)
    counts: Counter[tuple[str, str]] = Counter()
    for layer in layers:
        key = layer.block, layer.kind
        counts[key] += 1
        number = f" ({counts[key]} of {total[key]})" if total[key] > 1 else ""
        yield f"{layer.block}, {layer.kind}{number}"


def _microseconds(path: Path, threads: int, repeats: int) -> dict[str, float]:
    """Median time of each node, by its name in the file."""
    times: dict[str, float] = {}
    for node in explain(path, threads, repeats).nodes:
        name = re.sub(r"^fused |_nchwc$|_token_\d+$", "", node.name)
        times[name] = times.get(name, 0.0) + 1e3 * node.ms
    return times


def _time(layer: _Layer, times: dict[str, float]) -> float | None:
    own = [times[name] for name in sorted(layer.aliases) if name in times]
    return round(math.fsum(own), 3) if own else None
