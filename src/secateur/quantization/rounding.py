"""Rounding the weights with the data: to the outputs that matter, not to the nearest integer.

Layers are taken in order. Each sees the activations that the quantized layers before it really
give, so that their errors can still be compensated:

- *Adaptive rounding* seeks the integers whose outputs differ least from those of the real weights,
  which is the objective of AdaRound (Nagel et al. 2020, eq. 20), solved column by column: what
  rounding one weight gets wrong is spread over those not yet rounded, as far as they can compensate
  it (Frantar et al. 2022, "GPTQ", section 3). No step size, no iterations, no labels.
- *Bias correction* then takes from each channel's bias the mean by which rounding its weights moves
  its output, E[(Q(W) - W) x] (Nagel et al. 2019, section 4.2). The mean is over what the layer
  really sees. Errors of the layers before are left out: means are dominated by few images with
  large activations, and correcting by them adds error further on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.onnx_ir.model import Graph
from secateur.quantization.affine import Affine
from secateur.quantization.hessian import hessian_of, round_columns
from secateur.quantization.rate import Rate
from secateur.quantization.scheme import Rules, Scheme, make_layer, rule_of
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import WeightRule, round_weight


@torch.no_grad()
def recover(
    model: onnx.ModelProto,
    scheme: Scheme,
    images: Tensor,
    rules: Rules | None = None,
    *,
    adaptive: bool = False,
    correct_bias: bool = True,
    rate: Rate | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Scheme:
    """Choose integers and biases layer by layer, from the data.

    Args:
        model: The float graph.
        scheme: Of the same graph; its scales stay.
        images: Normalized float32 (N, C, R, R); no labels are needed. All are in memory at once,
            with the activations of a few layers.
        rules: How the weights were quantized in ``scheme``.
        adaptive: Round adaptively, else keep the integers of ``scheme``.
        correct_bias: Correct biases.
        rate: Weigh bits against loss in the layers it names, choosing their steps too.
        advance: Called after each layer.

    Raises:
        DataError: There are no images.
        SecateurError: The graph holds an operator that cannot be simulated.
    """
    if len(images) == 0:
        raise DataError("no images to recover accuracy with", where="quantize.images")
    graph, network = Graph(model), Simulated(model, scheme)
    values = network.start(images)
    for node in network.walk(values):
        if node.name not in scheme.layers:
            continue
        layer, x = scheme.layers[node.name], network.read(values, node)
        weight, bias = graph.constant(node.input[1]), graph.optional(node, 2)
        affine, integers, rule = layer.affine, layer.integers, rule_of(rules or {}, node.name)
        if rate is not None and node.name in rate.curvature:
            affine, integers = rate.round(node, weight, rule, x)
        elif adaptive:
            integers = _round_adaptively(node, weight, affine, rule, x)
        if correct_bias:
            lost = torch.from_numpy(weight - affine.dequantize(integers))
            shift = _mean_by_channel(network.layer_output(node, x, lost))
            bias = shift if bias is None else bias + shift
        delta = scheme.activations[node.input[0]].delta
        layer = make_layer(affine, integers, bias, delta)
        scheme = scheme.with_layer(node.name, layer)
        network.set_layer(node.name, layer)
        advance()
    return scheme


def _mean_by_channel(output: Tensor) -> np.ndarray:
    return output.mean([axis for axis in range(output.ndim) if axis != 1]).numpy()


def _round_adaptively(
    node: onnx.NodeProto, weight: np.ndarray, affine: Affine, rule: WeightRule, x: Tensor
) -> np.ndarray:
    hessian, high = hessian_of(node, weight.shape, x), affine.grid.high
    groups = len(hessian.order)
    rows = torch.tensor(weight).reshape(groups, len(weight) // groups, -1)
    delta = torch.tensor(np.broadcast_to(affine.delta, len(weight))).reshape(groups, -1)
    integers = round_columns(rows, delta, hessian, lambda q, _: q.round().clamp(-high, high))
    real = integers * delta[..., None]
    # What could saturate is clipped, as in rounding to nearest.
    return round_weight(real.reshape(weight.shape).numpy(), affine, rule)
