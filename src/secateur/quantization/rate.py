"""Rate-distortion optimization of steps and integers: bits of the file against loss of the network.

The only parameter is the price of a bit in nats of loss. Each row of a weight gets the step at
which the marginal bit is worth its price. Each weight gets the integer of least total cost of loss
and bits: mostly the nearest, often one closer to zero, often zero.

- Cost of an error: the curvature of the loss at the layer's output (quantization.curvature) times
  the error that remains after compensation by the rest of the row (quantization.hessian).
- Cost of an integer: its information under a model of the row, with a probability of zero and
  geometric magnitudes, which approximates the coder of secateur.artifact.
- The step: at high rate, a uniform quantizer with entropy coding has an error of step^2 / 12 and
  needs one bit for each halving, so that a bit is worth its price while ln(2) G h step^2 / 12
  exceeds it (Gersho & Gray 1992, section 9.9; Gish & Pierce 1968).
- The integers: rate-distortion optimized quantization, as in DeepCABAC (Wiedemann et al. 2020,
  section III-C), with error propagation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from secateur.onnx_ir.model import Graph, attribute
from secateur.quantization.affine import Affine, Grid, Integers
from secateur.quantization.hessian import Hessian, hessian_of, round_columns
from secateur.quantization.scheme import weighted_nodes
from secateur.quantization.weights import WeightRule, few_digits

_PASSES = 2
"""Number of iterations; each uses the bit costs of the preceding choice."""

_PRIOR = 16.0
"""Number of weights of the entire layer added to a row's model, because rows may be short."""


BITS = 8e6
"""Bits of a megabyte, the unit of prices."""


@dataclass(frozen=True)
class Rate:
    """The price of bits, and the cost of errors.

    Attributes:
        price: Nats of loss per megabyte, positive.
        curvature: From layer name to G of each row, for layers to be priced.
    """

    price: float
    curvature: Mapping[str, npt.NDArray[np.float32]]

    def round(
        self, node: onnx.NodeProto, weight: npt.NDArray[np.float32], rule: WeightRule, x: Tensor
    ) -> tuple[Affine, Integers]:
        """Choose steps and integers for the weight of ``node`` with input ``x``."""
        hessian = hessian_of(node, weight.shape, x)
        curvature = self.curvature[node.name]
        return round_by_rate(weight, rule.narrow_grid, hessian, curvature, self.price / BITS)


def priced_layers(graph: Graph) -> list[str]:
    """Names of priced layers: all but the first, the last and depthwise ones.

    The others have few weights with much influence on accuracy. Pricing them saves few kilobytes at
    a larger loss than saving the same bytes elsewhere.
    """
    nodes = weighted_nodes(graph)
    return [node.name for node in nodes[1:-1] if attribute(node, "group", 1) == 1]


def round_by_rate(
    weight: npt.NDArray[np.float32],
    grid: Grid,
    hessian: Hessian,
    curvature: npt.NDArray[np.float32],
    price: float,
) -> tuple[Affine, Integers]:
    """Choose steps and integers of one weight.

    Args:
        weight: Shape (rows, ...).
        grid: Symmetric; its highest integer bounds the step from below.
        hessian: Hessian of its inputs.
        curvature: G of each row, in nats; shape (rows,).
        price: Nats per bit, positive.

    Returns:
        Steps, one for each row, and integers of the weight's shape.
    """
    groups = len(hessian.order)
    rows = torch.tensor(weight).reshape(groups, len(weight) // groups, -1)
    cost = torch.tensor(curvature).reshape(groups, -1) / 2
    delta = _steps(rows, grid.high, cost, hessian, price)
    integers = (rows / delta[..., None]).round().clamp(-grid.high, grid.high)
    for _ in range(_PASSES):
        chooser = _Cheapest(cost * delta.square() / price, _Model.of(integers), grid.high)
        integers = round_columns(rows, delta, hessian, chooser)
    steps = delta.reshape(-1).numpy()
    affine = Affine(steps, np.zeros(len(steps), np.int32), grid, axis=0)
    return affine, integers.reshape(weight.shape).numpy().astype(np.int32)


def _steps(rows: Tensor, high: int, cost: Tensor, hessian: Hessian, price: float) -> Tensor:
    """Steps (groups, rows) at which the marginal bit is worth its price."""
    error = 2 * cost * hessian.weights.mean(1, keepdim=True)
    step = (12 * price / (math.log(2) * error.clamp(min=1e-30))).sqrt()
    largest = rows.abs().amax(2)
    # With a step of twice the largest weight or more, all integers are 0.
    step = torch.minimum(torch.maximum(step, largest / high), 2 * largest)
    step = torch.where(largest > 0, step, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.from_numpy(few_digits(step.numpy()))


@dataclass(frozen=True)
class _Model:
    """Bits of the integers of each row: b(0) = zero, b(q) = other + (|q| - 1) step.

    All have shape (groups, rows).
    """

    zero: Tensor
    other: Tensor
    step: Tensor

    @classmethod
    def of(cls, integers: Tensor) -> _Model:
        """Fit the model to ``integers``, (groups, rows, columns), with each row smoothed by all."""
        magnitude = integers.abs()
        nonzero, total = (magnitude > 0).float().sum(2), magnitude.sum(2)
        count = integers.shape[2]
        share = (nonzero.mean() / count).clamp(0.001, 0.999)
        size = (total.sum() / nonzero.sum().clamp(min=1)).clamp(min=1.001)
        filled = (nonzero + _PRIOR * share) / (count + _PRIOR)
        mean = (total + _PRIOR * share * size) / (nonzero + _PRIOR * share)
        more = 1 - 1 / mean.clamp(min=1.001)
        sign = 1.0
        return cls(-(1 - filled).log2(), sign - filled.log2() - (1 - more).log2(), -more.log2())


@dataclass(frozen=True)
class _Cheapest:
    """Chooses among the nearest integer, the next one toward zero, and zero.

    Attributes:
        worth: Bits per unit of squared error, in steps, before the column's own weight; (groups,
            rows).
        model: Model of bits.
        high: The highest integer.
    """

    worth: Tensor
    model: _Model
    high: int

    def __call__(self, steps: Tensor, weight: Tensor) -> Tensor:
        nearest = steps.round().clamp(-self.high, self.high)
        best = torch.zeros_like(nearest)
        worth = self.worth * weight
        least = worth * steps.square() + self.model.zero
        for candidate in (nearest - nearest.sign(), nearest):
            bits = self.model.other + (candidate.abs() - 1) * self.model.step
            total = worth * (steps - candidate).square() + bits
            better = (total < least) & (candidate != 0)
            best = torch.where(better, candidate, best)
            least = torch.where(better, total, least)
        return best
