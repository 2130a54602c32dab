"""Convolutions whose number of channels is not a multiple of the kernel's block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from secateur import environment
from secateur.onnx_ir.model import Graph, attribute
from secateur.profiling.nodes import Node

CONVOLUTION = re.compile(r"(Fused|Nhwc|NhwcFused|QLinear)?Conv")


@dataclass(frozen=True)
class Width:
    """A convolution whose number of channels is not a multiple of the kernel's block.

    Attributes:
        name: Name of the node.
        ms: Latency of the entire node, not of the last block.
        end: ``inputs``, ``outputs``, or ``channels`` of a depthwise convolution.
        channels: Number of channels in each group.
        block: Channels of a full block.
        why: How channels beyond the last full block are computed.
    """

    name: str
    ms: float
    end: str
    channels: int
    block: int
    why: str

    def __str__(self) -> str:
        """Name the number of surplus channels, and the nearest multiples of the block."""
        full = self.channels // self.block * self.block
        fits = f"prune to {full} or widen to" if full else "widen to"
        return (
            f"{self.channels} {self.end}, {self.channels - full} beyond whole blocks of "
            f"{self.block}: {fits} {full + self.block}; {self.why}"
        )


def find_widths(
    model: onnx.ModelProto, optimized: onnx.ModelProto, nodes: tuple[Node, ...]
) -> Iterator[Width]:
    """Yield convolutions that do not fill their blocks, slowest first, on known processors."""
    if not blocks_are_known(environment.processor()):
        return
    original, run = Graph(model), Graph(optimized)
    convolutions = {name: node for node in original.nodes for name in _aliases(original, node)}
    running = {node.name: node for node in run.nodes if CONVOLUTION.fullmatch(node.op_type)}
    for node in nodes:
        source, runs = convolutions.get(_stem(node.name)), running.get(node.name)
        weight = None if source is None else _weight(original, source)
        if source is None or runs is None or weight is None:
            continue
        groups = int(str(attribute(source, "group", 1)))
        outputs, inputs = weight.dims[0] // groups, weight.dims[1]
        for end, channels, block, why in _blocks(inputs, outputs, groups, runs, run):
            if channels % block:
                yield Width(node.name, node.ms, end, channels, block, why)


def blocks_are_known(processor: str) -> bool:
    """Whether the blocks of a processor's kernels are known."""
    return "avx2" in processor


def _aliases(graph: Graph, node: onnx.NodeProto) -> Iterator[str]:
    """Names of a convolution in the profile: its own, and that of a fused activation."""
    if node.op_type == "Conv":
        yield node.name
        yield from (reader.name for reader in graph.consumers.get(node.output[0], []))


def _stem(name: str) -> str:
    """The original name of a node that ONNX Runtime renamed."""
    return re.sub(r"^fused |_nchwc$|_token_\d+$", "", name)


def _weight(graph: Graph, conv: onnx.NodeProto) -> onnx.TensorProto | None:
    """The constant weight of a convolution, before its dequantizer if it has one.

    None if the graph computes it.
    """
    name = conv.input[1]
    producer = graph.producer.get(name)
    if producer is not None and producer.op_type == "DequantizeLinear":
        name = producer.input[0]
    return graph.constants.get(name)


def _blocks(
    inputs: int, outputs: int, groups: int, node: onnx.NodeProto, graph: Graph
) -> Iterator[tuple[str, int, int, str]]:
    """Yield blocked channels of ONNX Runtime's kernel, the block, and the remainder's cost.

    From onnxruntime/core/mlas/lib (qdwconv_avx2.cpp, convsym.cpp, snchwc.cpp) and confirmed by
    timing widths from 48 to 128.
    """
    wide = "avx512f" in environment.processor()
    depthwise = groups > 1 and inputs == outputs == 1
    if node.op_type == "QLinearConv":
        yield from _integer_blocks(inputs, outputs, groups, _signed(node, graph), wide)
        return
    block = 16 if wide else 8
    blocked = node.domain == "com.microsoft.nchwc"
    why = "the last block is padded" if blocked else "it runs outside of the blocked layout"
    if depthwise:
        yield "channels", groups, block, why
        return
    yield "outputs", outputs, block, why
    if inputs > block:  # the few channels of an image are not blocked
        yield "inputs", inputs, block, why


def _integer_blocks(
    inputs: int, outputs: int, groups: int, signed: bool, wide: bool
) -> Iterator[tuple[str, int, int, str]]:
    if groups > 1 and inputs == outputs == 1:
        slow = "the quick depthwise kernel takes none of the layer" if signed else (
            "those beyond go by eight, then one by one"
        )  # fmt: skip
        yield "channels", groups, 16, slow
        return
    step = 4 if wide else 8
    direct = signed and groups == 1
    misses = direct and bool(outputs % step)
    why = "the direct kernel does not take the layer" if misses else "the last block is padded"
    yield "outputs", outputs, 16, why
    if direct and inputs > 4:
        yield "inputs", inputs, 4, "the direct kernel does not take the layer"


def _signed(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether the optimized weight is int8; ONNX Runtime may convert it to uint8."""
    weight = graph.constants.get(node.input[3])
    return weight is not None and weight.data_type == onnx.TensorProto.INT8
