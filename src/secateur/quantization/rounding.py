"""Rounding the weights with the data: to the outputs that matter, not to the nearest integer.

Layers are taken in order. Each sees the activations that the quantized layers before it really
give, so that what they got wrong can still be made good:

- *Adaptive rounding* seeks the integers whose outputs differ least from those of the real weights,
  which is the objective of AdaRound (Nagel et al. 2020, eq. 20), solved column by column: what
  rounding one weight gets wrong is spread over those not yet rounded, as far as they can stand in
  for it (Frantar et al. 2022, "GPTQ", section 3). No step size, no iterations, no labels.
- *Bias correction* then takes from each channel's bias the mean by which rounding its weights moves
  its output, E[(Q(W) - W) x] (Nagel et al. 2019, section 4.2). The mean is over what the layer
  really sees. Errors of the layers before are left out of it: made good by means, which few images
  with large activations dominate, they come back larger further on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import DataError
from secateur.onnx_graph import Graph, attribute
from secateur.quantization.affine import Affine
from secateur.quantization.scheme import Rules, Scheme, make_layer, rule_of
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import WeightRule, round_weight

DAMPING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it (Frantar et al. 2022)."""

_BLOCK = 128
"""Columns that are rounded before the rest of a row learns of it."""

_POSITIONS = 2**16
"""Positions, pixels or images, from which a layer's Hessian is made."""


@torch.no_grad()
def recover(
    model: onnx.ModelProto,
    scheme: Scheme,
    images: Tensor,
    rules: Rules | None = None,
    *,
    adaptive: bool = False,
    correct_bias: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> Scheme:
    """Choose integers and biases anew, layer by layer, with a look at the data.

    Args:
        model: The float graph.
        scheme: Of the same graph; its scales stay.
        images: Normalized float32 (N, C, R, R); no labels are needed. All are in memory at once,
            with the activations of a few layers.
        rules: How the weights were quantized in ``scheme``.
        adaptive: Round adaptively, else keep the integers of ``scheme``.
        correct_bias: Correct biases.
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
        layer, x = scheme.layers[node.name], values[node.input[0]]
        weight, bias = graph.constant(node.input[1]), graph.optional(node, 2)
        integers = layer.integers
        if adaptive:
            rule = rule_of(rules or {}, node.name)
            integers = _round_adaptively(node, weight, layer.affine, rule, x)
        if correct_bias:
            lost = torch.from_numpy(weight - layer.affine.dequantize(integers))
            shift = _mean_by_channel(network.layer_output(node, x, lost))
            bias = shift if bias is None else bias + shift
        delta = scheme.activations[node.input[0]].delta
        layer = make_layer(layer.affine, integers, bias, delta)
        scheme = scheme.with_layer(node.name, layer)
        network.set_layer(node.name, layer)
        advance()
    return scheme


def _mean_by_channel(output: Tensor) -> np.ndarray:
    return output.mean([axis for axis in range(output.ndim) if axis != 1]).numpy()


def _round_adaptively(
    node: onnx.NodeProto, weight: np.ndarray, affine: Affine, rule: WeightRule, x: Tensor
) -> np.ndarray:
    groups = attribute(node, "group", 1)
    hessians = _hessians(_patches(node, weight, x, groups))
    rows = torch.tensor(weight).reshape(groups, len(weight) // groups, -1)
    delta = torch.tensor(np.broadcast_to(affine.delta, len(weight))).reshape(groups, -1)
    real = _spread_errors(rows, delta, affine.grid.high, hessians) * delta[..., None]
    # What could saturate is clipped, as in rounding to nearest.
    return round_weight(real.reshape(weight.shape).numpy(), affine, rule)


def _patches(node: onnx.NodeProto, weight: np.ndarray, x: Tensor, groups: int) -> Tensor:
    """What each output position multiplies the rows by: (groups, columns, positions)."""
    if node.op_type == "Gemm":
        return x.T[None]
    count = max(1, _POSITIONS // max(1, x.shape[2] * x.shape[3]))
    x = x[:: max(1, len(x) // count)]
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    unfolded = F.unfold(
        F.pad(x, (left, right, top, bottom)),
        weight.shape[2:],
        dilation=attribute(node, "dilations", [1, 1]),
        stride=attribute(node, "strides", [1, 1]),
    )
    n, columns, positions = unfolded.shape
    grouped = unfolded.reshape(n, groups, columns // groups, positions)
    return grouped.permute(1, 2, 0, 3).reshape(groups, columns // groups, n * positions)


def _hessians(patches: Tensor) -> Tensor:
    """Second derivatives (groups, columns, columns) of an output's squared error, damped."""
    hessians = patches @ patches.mT / patches.shape[2]
    diagonals = hessians.diagonal(dim1=1, dim2=2)
    diagonals += DAMPING * diagonals.mean(1, keepdim=True) + 1e-8
    return hessians


def _spread_errors(rows: Tensor, delta: Tensor, high: int, hessians: Tensor) -> Tensor:
    """Round rows column by column, passing errors on; weights that are 0 stay 0.

    The upper Cholesky factor of the inverse Hessian holds, in row k, how the error of column k is
    best spread over the columns after it (Frantar et al. 2022, section 3.3).

    Args:
        rows: Real weights (groups, rows, columns).
        delta: Their scales (groups, rows).
        high: The largest integer.
        hessians: Positive definite (groups, columns, columns).

    Returns:
        Integers, as float32, of the shape of ``rows``.
    """
    # Columns that weigh most are rounded first, while there are many to make good their errors.
    order = hessians.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    columns = order[:, None, :].expand_as(rows)
    rows = rows.gather(2, columns)
    pruned = rows == 0
    hessians = hessians.gather(1, order[:, :, None].expand_as(hessians))
    hessians = hessians.gather(2, order[:, None, :].expand_as(hessians)).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessians))
    spread = torch.linalg.cholesky(inverse, upper=True).float()
    integers, count = torch.empty_like(rows), rows.shape[2]
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = rows.new_empty(*rows.shape[:2], end - start)
        for k in range(start, end):
            q = (rows[..., k] / delta).round().clamp(-high, high)
            q[pruned[..., k]] = 0
            integers[..., k] = q
            error = (rows[..., k] - q * delta) / spread[:, k, k, None]
            rows[..., k:end] -= error[..., None] * spread[:, None, k, k:end]
            errors[..., k - start] = error
        rows[..., end:] -= errors @ spread[:, start:end, end:]
    return torch.empty_like(integers).scatter_(2, columns, integers)
