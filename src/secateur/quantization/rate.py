"""Steps and integers by rate and distortion: bits in the file against loss of the network.

One number rules: the price of a bit in nats of loss. Every row of every weight gets the step at
which a bit more would no longer pay, and every weight the integer that costs least, loss and bits
together: mostly the nearest, often one nearer to zero, often zero.

- What an error costs: the curvature of the loss at the layer's output (quantization.curvature)
  times what is left of the error once the rest of the row has compensated it
  (quantization.hessian).
- What an integer costs: its information under a model of the row, zero or not, and geometric
  magnitudes; about what secateur.artifact comes to.
- The step: at high rate a uniform quantizer with entropy coding errs by step^2 / 12 and spends one
  bit for each halving, so that a bit pays as long as
  ln(2) G h step^2 / 12 exceeds its price (Gersho & Gray 1992, section 9.9; Gish & Pierce 1968).
- The integers: rate-distortion optimized quantization, as in DeepCABAC (Wiedemann et al. 2020,
  section III-C), with errors passed on.
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
"""Times that integers are chosen, each with the bits that the choice before led to."""

_PRIOR = 16.0
"""Weights of the whole layer that count for a row's own model, which may have few."""


BITS = 8e6
"""Bits of a megabyte, in which prices are given."""


@dataclass(frozen=True)
class Rate:
    """What bits are worth, and where errors cost what.

    Attributes:
        price: Nats of loss that a megabyte may cost, positive.
        curvature: By name of the layers to be rounded by it, G of each row.
    """

    price: float
    curvature: Mapping[str, npt.NDArray[np.float32]]

    def round(
        self, node: onnx.NodeProto, weight: npt.NDArray[np.float32], rule: WeightRule, x: Tensor
    ) -> tuple[Affine, Integers]:
        """Choose steps and integers for the weight of ``node``, which reads ``x``."""
        hessian = hessian_of(node, weight.shape, x)
        curvature = self.curvature[node.name]
        return round_by_rate(weight, rule.narrow_grid, hessian, curvature, self.price / BITS)


def priced_layers(graph: Graph) -> list[str]:
    """Names of the layers that are priced: all but the first, the last and depthwise ones.

    Those hold few weights, and each of them much of the accuracy. Priced with the rest, they save a
    few kilobytes and cost more loss than the same bytes taken elsewhere.
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
        hessian: Of its inputs.
        curvature: G of each row, in nats; shape (rows,).
        price: Nats that a bit may cost, positive.

    Returns:
        Steps, one a row, and integers of the weight's shape.
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
    """Steps (groups, rows) at which a bit more no longer pays."""
    error = 2 * cost * hessian.weights.mean(1, keepdim=True)
    step = (12 * price / (math.log(2) * error.clamp(min=1e-30))).sqrt()
    largest = rows.abs().amax(2)
    # Beyond twice the largest weight every step says the same: nothing is worth a bit.
    step = torch.minimum(torch.maximum(step, largest / high), 2 * largest)
    step = torch.where(largest > 0, step, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.from_numpy(few_digits(step.numpy()))


@dataclass(frozen=True)
class _Model:
    """What integers of each row cost in bits: b(0) = zero, b(q) = other + (|q| - 1) step.

    All are of shape (groups, rows).
    """

    zero: Tensor
    other: Tensor
    step: Tensor

    @classmethod
    def of(cls, integers: Tensor) -> _Model:
        """The model that fits ``integers``, (groups, rows, columns), each row leaning on all."""
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
        worth: Bits that a unit of squared error, in steps, is worth before the column's own weight;
            (groups, rows).
        model: Bits of each integer.
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
