"""The quantization scheme of a float graph: grids, integers and biases, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from secateur.onnx_ir.model import Graph, is_layer
from secateur.quantization.affine import UINT8, Affine, Integers, from_range, quantize
from secateur.quantization.histogram import Range
from secateur.quantization.placement import (
    Placement,
    find_placement,
    joint_range,
)
from secateur.quantization.weights import (
    LARGEST_BIAS,
    WeightRule,
    choose_scales,
    is_saturation_free,
    round_weight,
)

Rules = Mapping[str, WeightRule]
"""From node name to its rule; the empty name has the rule of other nodes."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer on integers.

    Attributes:
        affine: Grid of its weight: symmetric, with a scale for each row or one for all.
        integers: The weight, int32 within the grid, of the float weight's shape.
        bias: int32 (rows,) at the scale of the accumulator, input scale times weight scale (Jacob
            et al. 2018, section 2.4); None without a bias.
        bias_scale: Scale of the bias, of the shape of ``affine.delta``.
    """

    affine: Affine
    integers: Integers
    bias: Integers | None
    bias_scale: npt.NDArray[np.float32]

    @property
    def weight(self) -> npt.NDArray[np.float32]:
        """The real values of the integers."""
        return self.affine.dequantize(self.integers)

    @property
    def real_bias(self) -> npt.NDArray[np.float32] | None:
        """The real values of the integer bias."""
        return None if self.bias is None else self.bias.astype(np.float32) * self.bias_scale


@dataclass(frozen=True, eq=False)
class Scheme:
    """The quantization of a float graph.

    Attributes:
        placement: Placement of quantizers.
        activations: Grid of each quantized tensor; tensors of a group share one.
        layers: From node name to each convolution and linear layer on integers.
    """

    placement: Placement
    activations: dict[str, Affine]
    layers: dict[str, Layer]

    def with_layer(self, name: str, layer: Layer) -> Scheme:
        """Return the scheme with one layer replaced."""
        return replace(self, layers=self.layers | {name: layer})

    @property
    def saturation_free(self) -> bool:
        """Whether no kernel can saturate on the weights; see quantization.weights."""
        return all(is_saturation_free(layer.integers) for layer in self.layers.values())


def weighted_nodes(graph: Graph) -> list[onnx.NodeProto]:
    """The convolutions and linear layers that can run on integers, in the graph's order."""
    return [node for node in graph.nodes if is_layer(graph, node)]


def rule_of(rules: Rules, node: str) -> WeightRule:
    """The rule of ``node``."""
    return rules.get(node) or rules.get("") or WeightRule()


def make_scheme(
    model: onnx.ModelProto, ranges: Mapping[str, Range], rules: Rules | None = None
) -> Scheme:
    """Choose every grid of a float graph, and round its weights to the nearest integers.

    Activations are uint8, per tensor; weights follow ``rules``, by default int8, symmetric, per
    output channel, free of saturation.

    Args:
        model: A float graph of :func:`secateur.onnx_ir.export.export_onnx`.
        ranges: Range of every tensor to quantize, from
            :func:`secateur.quantization.calibrate.calibrate` on the same graph.
        rules: Rules of weight quantization.

    Raises:
        SecateurError: A range is missing or not finite, or the graph has nothing to quantize.
    """
    placement, graph = find_placement(model), Graph(model)
    activations: dict[str, Affine] = {}
    for group in placement.groups:
        activations |= dict.fromkeys(group, from_range(*joint_range(group, dict(ranges)), UINT8))
    layers = {}
    for node in weighted_nodes(graph):
        weight, bias = graph.constant(node.input[1]), graph.optional(node, 2)
        rule, scale = rule_of(rules or {}, node.name), activations[node.input[0]].delta
        affine = choose_scales(weight, rule, bias, scale)
        layers[node.name] = make_layer(affine, round_weight(weight, affine, rule), bias, scale)
    return Scheme(placement, activations, layers)


def make_layer(
    affine: Affine,
    integers: Integers,
    bias: npt.NDArray[np.float32] | None,
    input_scale: npt.NDArray[np.float32],
) -> Layer:
    """Make a layer, with its real ``bias`` rounded to the scale of the accumulator."""
    scale = np.asarray(input_scale * affine.delta, np.float32)
    sums = None if bias is None else quantize(bias, scale, 0, -LARGEST_BIAS, LARGEST_BIAS)
    return Layer(affine, integers, sums, scale)
