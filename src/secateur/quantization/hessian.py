"""Rounding by the Hessian of a layer's squared output error in its weights.

The rounding error of a weight can be compensated by weights of the same row that are not yet
rounded, if their inputs are correlated. Row k of the upper Cholesky factor of the inverse Hessian
gives the optimal update of later columns for an error of column k; its diagonal gives the remaining
loss (Frantar et al. 2022, "GPTQ", section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.onnx_ir.model import attribute

DAMPING = 0.01
"""Fraction of the mean diagonal that is added to the diagonal (Frantar et al. 2022)."""

_BLOCK = 128
"""Number of columns rounded before their errors are propagated to the rest of a row."""

_POSITIONS = 2**16
"""Number of positions (pixels or images) used for a layer's Hessian."""


@dataclass(frozen=True, eq=False)
class Hessian:
    """Factored second derivatives of the squared output error, in the order of rounding.

    Attributes:
        order: int64 (groups, columns): columns of largest weight first, while many others can
            compensate their errors.
        spread: float32 (groups, columns, columns), the upper Cholesky factor of the inverse.
    """

    order: Tensor
    spread: Tensor

    @property
    def weights(self) -> Tensor:
        """Remaining cost of a unit of squared error of each column; (groups, columns)."""
        return self.spread.diagonal(dim1=1, dim2=2).pow(-2)


def hessian_of(node: onnx.NodeProto, shape: tuple[int, ...], x: Tensor) -> Hessian:
    """Factor the mean Hessian over all positions of all images.

    Args:
        node: A convolution or linear layer.
        shape: Shape of its weight.
        x: Input of the node, (N, ...).
    """
    patches = _patches(node, shape, x, attribute(node, "group", 1))
    hessians = patches @ patches.mT / patches.shape[2]
    diagonals = hessians.diagonal(dim1=1, dim2=2)
    diagonals += DAMPING * diagonals.mean(1, keepdim=True) + 1e-8
    order = diagonals.argsort(dim=1, descending=True)
    hessians = hessians.gather(1, order[:, :, None].expand_as(hessians))
    hessians = hessians.gather(2, order[:, None, :].expand_as(hessians)).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessians))
    return Hessian(order, torch.linalg.cholesky(inverse, upper=True).float())


def _patches(node: onnx.NodeProto, shape: tuple[int, ...], x: Tensor, groups: int) -> Tensor:
    """Input patch of each output position: (groups, columns, positions)."""
    if node.op_type == "Gemm":
        return x.T[None]
    count = max(1, _POSITIONS // max(1, x.shape[2] * x.shape[3]))
    x = x[:: max(1, len(x) // count)]
    top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
    unfolded = F.unfold(
        F.pad(x, (left, right, top, bottom)),
        shape[2:],
        dilation=attribute(node, "dilations", [1, 1]),
        stride=attribute(node, "strides", [1, 1]),
    )
    n, columns, positions = unfolded.shape
    grouped = unfolded.reshape(n, groups, columns // groups, positions)
    return grouped.permute(1, 2, 0, 3).reshape(groups, columns // groups, n * positions)


def round_columns(
    rows: Tensor, delta: Tensor, hessian: Hessian, choose: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Round rows column by column with error propagation; weights of 0 stay 0.

    Args:
        rows: Real weights (groups, rows, columns).
        delta: Their scales (groups, rows).
        hessian: Hessian of the same groups and columns.
        choose: Returns the integers of one column from its values in units of ``delta``, (groups,
            rows), and the cost of a unit of squared error, (groups, 1).

    Returns:
        Integers, as float32, of the shape of ``rows``.
    """
    columns = hessian.order[:, None, :].expand_as(rows)
    rows = rows.gather(2, columns)
    pruned = rows == 0
    weights = hessian.weights
    integers, count = torch.empty_like(rows), rows.shape[2]
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = rows.new_empty(*rows.shape[:2], end - start)
        for k in range(start, end):
            q = choose(rows[..., k] / delta, weights[:, k, None])
            q[pruned[..., k]] = 0
            integers[..., k] = q
            error = (rows[..., k] - q * delta) / hessian.spread[:, k, k, None]
            rows[..., k:end] -= error[..., None] * hessian.spread[:, None, k, k:end]
            errors[..., k - start] = error
        rows[..., end:] -= errors @ hessian.spread[:, start:end, end:]
    return torch.empty_like(integers).scatter_(2, columns, integers)
