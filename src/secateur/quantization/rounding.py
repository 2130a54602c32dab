"""Data-dependent rounding of weights, by their effect on outputs.

Layers are processed in order. Each layer uses the activations of the quantized layers before it, so
that it can compensate their errors:

- *Adaptive rounding* minimizes the difference between outputs of integers and of real weights, the
  objective of AdaRound (Nagel et al. 2020, eq. 20). It is solved column by column: the rounding
  error of a weight is compensated by weights that are not yet rounded (Frantar et al. 2022, "GPTQ",
  section 3). It needs no step size, iterations or labels.
- *Bias correction* then subtracts from each channel's bias the mean shift of its output by
  rounding, E[(Q(W) - W) x] (Nagel et al. 2019, section 4.2), over the layer's actual inputs. Errors
  of preceding layers are not corrected: their means are dominated by few images with large
  activations, and correcting them adds error in later layers.
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
    """Choose integers and biases layer by layer from images.

    Args:
        model: The float graph.
        scheme: Scheme of the same graph; its scales are kept.
        images: Normalized float32 (N, C, R, R); no labels are needed. All must fit into memory,
            with the activations of a few layers.
        rules: Rules of weight quantization of ``scheme``.
        adaptive: Whether to round adaptively, else the integers of ``scheme`` are kept.
        correct_bias: Whether to correct biases.
        rate: Price of bits; steps and integers of its layers are chosen by it.
        advance: Called after each layer.

    Raises:
        DataError: There are no images.
        SecateurError: An operator of the graph cannot be simulated.
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
            error = torch.from_numpy(weight - affine.dequantize(integers))
            shift = _mean_by_channel(network.layer_output(node, x, error))
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
    # Clip values that could saturate, as in rounding to nearest.
    return round_weight(real.reshape(weight.shape).numpy(), affine, rule)
