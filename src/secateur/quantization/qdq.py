"""From a float graph and ranges to standard ONNX QDQ, which runtimes fuse into integer kernels.

Weights are int8, symmetric, per output channel; activations uint8, per tensor; biases int32 at the
scale of the sums they join, input scale times weight scale (Jacob et al. 2018, section 2.4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from secateur.onnx_graph import Graph, read_model, write_model
from secateur.quantization.affine import (
    INT8_SYMMETRIC,
    UINT8,
    Affine,
    from_range,
    from_tensor,
    quantize,
)
from secateur.quantization.placement import (
    WEIGHTED,
    Placement,
    Range,
    find_placement,
    is_quantizable,
    joint_range,
)

# A bias may use a quarter of int32, so that the sum it joins cannot overflow: 255 * 127 * K stays
# below 2^30 for K up to 33,000 products.
LARGEST_BIAS = 2**30


def quantize_onnx(path: Path, ranges: dict[str, Range], out: Path) -> None:
    """Quantize the float file ``path`` into the QDQ file ``out``; metadata is carried over.

    Args:
        path: A float file of :func:`secateur.export.export_onnx`.
        ranges: Of every tensor to quantize, from
            :func:`secateur.quantization.calibrate.calibrate` on the same file.
        out: The file to write.

    Raises:
        SecateurError: A range is missing or not finite, or the graph has nothing to quantize.
        StoreError: A file cannot be read or written.
    """
    source = read_model(path)
    placement = find_placement(source)
    scales: dict[str, Affine] = {}
    for group in placement.groups:
        affine = from_range(*joint_range(group, ranges), UINT8)
        scales |= dict.fromkeys(group, affine)
    graph = _Rewriter(Graph(source), placement, scales).rewrite(source.graph)
    model = onnx.helper.make_model(
        graph,
        opset_imports=source.opset_import,
        ir_version=source.ir_version,
        producer_name=source.producer_name,
    )
    model.metadata_props.extend(source.metadata_props)
    write_model(model, out)


class _Rewriter:
    """Copies a float graph node by node, with quantizers around what is to be quantized."""

    def __init__(self, graph: Graph, placement: Placement, scales: dict[str, Affine]) -> None:
        self.graph, self.scales = graph, scales
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        # An absorbed activation's input, and the name under which it is quantized.
        self.absorbed = {
            graph.producer[name].input[0]: name
            for name, bound in placement.activations.items()
            if name in scales and _clamps_like(scales[name], bound)
        }
        self.names = {
            group[index]: group[0] for group in placement.groups for index in range(len(group))
        }

    def rewrite(self, source: onnx.GraphProto) -> onnx.GraphProto:
        """Return the quantized graph."""
        for name in self.graph.inputs:
            if name in self.scales:
                self._requantize(name, name)
        for node in self.graph.nodes:
            if node.output[0] in self.absorbed.values():
                continue
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            if node.op_type in WEIGHTED and is_quantizable(self.graph, node):
                copied.input[:] = [self._readable(node.input[0]), *self._quantize_weights(node)]
            else:
                copied.input[:] = [self._readable(name) for name in node.input]
            self.nodes.append(copied)
            for name in node.output:
                known = self.absorbed.get(name, name)
                if known in self.scales:
                    self._requantize(name, known)
        return onnx.helper.make_graph(
            self.nodes, source.name, source.input, source.output, list(self.constants.values())
        )

    def _readable(self, name: str) -> str:
        """The name under which a node reads what was ``name`` in the float graph."""
        if name in self.graph.constants:
            self.constants[name] = self.graph.constants[name]
        return f"{name}/dequantized" if name in self.scales else name

    def _requantize(self, tensor: str, known: str) -> None:
        """Round ``tensor`` to the grid of the float graph's ``known``."""
        affine, shared = self.scales[known], self.names[known]
        parameters = [
            self._constant(f"{shared}/scale", affine.delta),
            self._constant(f"{shared}/zero_point", affine.zero_point.astype(np.uint8)),
        ]
        self._add("QuantizeLinear", [tensor, *parameters], f"{known}/quantized")
        self._add("DequantizeLinear", [f"{known}/quantized", *parameters], f"{known}/dequantized")

    def _quantize_weights(self, node: onnx.NodeProto) -> list[str]:
        """Return the names of the real values of ``node``'s int8 weight and int32 bias."""
        weight = self.graph.constant(node.input[1])
        bias = self.graph.optional(node, 2)
        input_scale = self.scales[node.input[0]].delta
        affine = weight_scales(weight, bias, input_scale)
        integers = affine.quantize(weight).astype(np.int8)
        names = [self._dequantized(f"{node.name}/weight", integers, affine.delta)]
        if bias is not None:
            scale = input_scale * affine.delta
            sums = quantize(bias, scale, 0, -LARGEST_BIAS, LARGEST_BIAS)
            names.append(self._dequantized(f"{node.name}/bias", sums, scale))
        return names

    def _dequantized(self, name: str, integers: npt.NDArray, scale: npt.NDArray) -> str:
        """Store ``integers``, one scale a row, and return the name of their real values."""
        inputs = [
            self._constant(f"{name}/quantized", integers),
            self._constant(f"{name}/scale", scale),
            self._constant(f"{name}/zero_point", np.zeros(scale.shape, integers.dtype)),
        ]
        return self._add("DequantizeLinear", inputs, f"{name}/dequantized", axis=0)

    def _constant(self, name: str, value: npt.NDArray) -> str:
        self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        return output


def _clamps_like(affine: Affine, bound: float) -> bool:
    """Tell whether Q alone does what a clip to [0, ``bound``] before it would do."""
    starts_at_zero = int(affine.zero_point) == affine.grid.low
    top = float(affine.delta) * (affine.grid.high - int(affine.zero_point))
    # The top step may lie above the bound by the rounding of delta, never by half a step.
    return starts_at_zero and top <= bound + 0.25 * float(affine.delta)


def weight_scales(
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    input_scale: npt.NDArray[np.float32],
) -> Affine:
    """Choose int8 scales for the rows of ``weight``, wide enough that the bias fits its int32.

    A row of (nearly) zeros has (nearly) no scale of its own; were its bias stored at that scale
    times the input's, it would overflow, so such a row takes its scale from the bias.

    Args:
        weight: Shape (rows, ...).
        bias: Shape (rows,), or None.
        input_scale: Scalar, positive.
    """
    affine = from_tensor(weight, INT8_SYMMETRIC, axis=0)
    if bias is None:
        return affine
    needed = np.abs(bias).astype(np.float64) / (float(input_scale) * LARGEST_BIAS)
    empty = np.abs(weight).reshape(len(weight), -1).max(axis=1) == 0
    delta = np.where(empty & (needed > 0), needed, np.maximum(affine.delta, needed))
    tiny = np.finfo(np.float32).tiny
    return Affine(np.maximum(delta, tiny).astype(np.float32), affine.zero_point, affine.grid, 0)
