"""Writes a float graph and a scheme as standard ONNX QDQ, which runtimes fuse into integer kernels.

Weights are int8, symmetric; activations uint8, per tensor; biases int32. Weights of fewer than 8
bits are stored as int8 too, the only type of integer kernels on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from secateur.errors import SecateurError
from secateur.onnx_ir.model import Graph, read_model, write_model
from secateur.quantization.affine import INT8_SYMMETRIC, UINT8, Affine
from secateur.quantization.histogram import Range
from secateur.quantization.placement import find_placement
from secateur.quantization.scheme import Layer, Rules, Scheme, make_scheme, weighted_nodes
from secateur.runtimes import SATURATION_FREE


def quantize_onnx(
    path: Path, ranges: Mapping[str, Range], out: Path, rules: Rules | None = None
) -> None:
    """Quantize the float file ``path`` into the QDQ file ``out``, rounding to nearest.

    Args:
        path: A float file of :func:`secateur.onnx_ir.export.export_onnx`.
        ranges: Range of every tensor to quantize, from
            :func:`secateur.quantization.calibrate.calibrate` on the same file.
        out: The file to write.
        rules: Rules of weight quantization.

    Raises:
        SecateurError: A range is missing or not finite, or the graph has nothing to quantize.
        StoreError: A file cannot be read or written.
    """
    model = read_model(path)
    write_qdq(model, make_scheme(model, ranges, rules), out)


def write_qdq(source: onnx.ModelProto, scheme: Scheme, out: Path) -> None:
    """Write a float graph, quantized by ``scheme``, as one file with the same metadata.

    Raises:
        StoreError: The file cannot be written.
    """
    write_model(to_qdq(source, scheme), out)


def to_qdq(source: onnx.ModelProto, scheme: Scheme) -> onnx.ModelProto:
    """Return a float graph, quantized by ``scheme``, with the same metadata."""
    graph = _Rewriter(Graph(source), scheme).rewrite(source.graph)
    model = onnx.helper.make_model(
        graph,
        opset_imports=source.opset_import,
        ir_version=source.ir_version,
        producer_name=source.producer_name,
    )
    metadata = {entry.key: entry.value for entry in source.metadata_props}
    if scheme.saturation_free:
        metadata[SATURATION_FREE] = "true"
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    return model


def read_scheme(source: onnx.ModelProto, path: Path) -> Scheme:
    """Read the scheme of ``path``, a file of :func:`write_qdq`, for the float graph ``source``.

    Weights of fewer than 8 bits are stored and read as int8.

    Raises:
        SecateurError: The file is not a quantization of that graph; the message names the missing
            constant.
        StoreError: The file cannot be read.
    """
    constants = Graph(read_model(path)).constants
    placement = find_placement(source)

    def constant(name: str) -> npt.NDArray:
        if name not in constants:
            raise SecateurError(
                "not a quantization of the float graph", where=path, expected=f"a constant {name}"
            )
        return numpy_helper.to_array(constants[name])

    activations: dict[str, Affine] = {}
    for group in placement.groups:
        zero_point = constant(f"{group[0]}/zero_point").astype(np.int32)
        affine = Affine(constant(f"{group[0]}/scale"), zero_point, UINT8)
        activations |= dict.fromkeys(group, affine)
    layers = {}
    for node in weighted_nodes(Graph(source)):
        scale = constant(f"{node.name}/weight/scale")
        zeros, axis = np.zeros(scale.shape, np.int32), 0 if scale.ndim else None
        has_bias = len(node.input) > 2 and node.input[2]
        layers[node.name] = Layer(
            Affine(scale, zeros, INT8_SYMMETRIC, axis),
            constant(f"{node.name}/weight/quantized").astype(np.int32),
            constant(f"{node.name}/bias/quantized") if has_bias else None,
            np.asarray(activations[node.input[0]].delta * scale),
        )
    return Scheme(placement, activations, layers)


class _Rewriter:
    """Copies a float graph node by node and inserts quantizers."""

    def __init__(self, graph: Graph, scheme: Scheme) -> None:
        self.graph, self.scales, self.layers = graph, scheme.activations, scheme.layers
        self.placement = scheme.placement
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        # From the input of an absorbed activation to its quantized name.
        self.absorbed = {
            graph.producer[name].input[0]: name
            for name, bound in scheme.placement.activations.items()
            if name in self.scales and _clamps_like(self.scales[name], bound)
        }
        self.names = {name: group[0] for group in scheme.placement.groups for name in group}

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
            if node.name in self.layers:
                image, weights = self._readable(node, node.input[0]), self._integer_weights(node)
                copied.input[:] = [image, *weights]
            else:
                copied.input[:] = [self._readable(node, name) for name in node.input]
            self.nodes.append(copied)
            for name in node.output:
                known = self.absorbed.get(name, name)
                if known in self.scales:
                    self._requantize(name, known)
        return onnx.helper.make_graph(
            self.nodes, source.name, source.input, source.output, list(self.constants.values())
        )

    def _readable(self, node: onnx.NodeProto, name: str) -> str:
        """The name of the tensor that ``node`` reads in place of ``name``."""
        if name in self.graph.constants:
            self.constants[name] = self.graph.constants[name]
        rounded = name in self.scales and not self.placement.reads_unrounded(node, name)
        return f"{name}/dequantized" if rounded else name

    def _requantize(self, tensor: str, known: str) -> None:
        """Round ``tensor`` to the grid of the float graph's ``known``."""
        affine, shared = self.scales[known], self.names[known]
        parameters = [
            self._constant(f"{shared}/scale", affine.delta),
            self._constant(f"{shared}/zero_point", affine.zero_point.astype(np.uint8)),
        ]
        self._add("QuantizeLinear", [tensor, *parameters], f"{known}/quantized")
        self._add("DequantizeLinear", [f"{known}/quantized", *parameters], f"{known}/dequantized")

    def _integer_weights(self, node: onnx.NodeProto) -> list[str]:
        """Return the names of the real values of ``node``'s int8 weight and int32 bias."""
        layer, integers = self.layers[node.name], self.layers[node.name].integers.astype(np.int8)
        names = [self._dequantized(f"{node.name}/weight", integers, layer.affine.delta)]
        if layer.bias is not None:
            names.append(self._dequantized(f"{node.name}/bias", layer.bias, layer.bias_scale))
        return names

    def _dequantized(self, name: str, integers: npt.NDArray, scale: npt.NDArray) -> str:
        """Store ``integers`` with a scale per row or for all; return the real values' name."""
        inputs = [
            self._constant(f"{name}/quantized", integers),
            self._constant(f"{name}/scale", scale),
            self._constant(f"{name}/zero_point", np.zeros(scale.shape, integers.dtype)),
        ]
        along = {"axis": 0} if scale.ndim else {}
        return self._add("DequantizeLinear", inputs, f"{name}/dequantized", **along)

    def _constant(self, name: str, value: npt.NDArray) -> str:
        self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node = onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        return output


def _clamps_like(affine: Affine, bound: float) -> bool:
    """Whether Q alone is equivalent to a preceding clip to [0, ``bound``]."""
    starts_at_zero = int(affine.zero_point) == affine.grid.low
    top = float(affine.delta) * (affine.grid.high - int(affine.zero_point))
    # The top step may exceed the bound by the rounding of delta, but not by half a step.
    return starts_at_zero and top <= bound + 0.25 * float(affine.delta)
