"""The Hessian of the squared error of a layer's outputs in its weights, and rounding by it.

The error of rounding one weight can be compensated by the weights of the same row that are not yet
rounded, as far as their inputs move together. The upper Cholesky factor of the inverse Hessian
holds, in row k, how the error of column k is best spread over the columns after it, and on its
diagonal what is lost all the same (Frantar et al. 2022, "GPTQ", section 3.3).
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
"""Share of the mean of the Hessian's diagonal that is added to it (Frantar et al. 2022)."""

_BLOCK = 128
"""Columns that are rounded before their errors are passed to the rest of a row."""

_POSITIONS = 2**16
"""Positions, pixels or images, from which a layer's Hessian is made."""


@dataclass(frozen=True, eq=False)
class Hessian:
    """Second derivatives of an output's squared error, factored, columns in the order of rounding.

    Attributes:
        order: int64 (groups, columns): those that weigh most first, while there are many to make
            good their errors.
        spread: float32 (groups, columns, columns), the upper Cholesky factor of the inverse.
    """

    order: Tensor
    spread: Tensor

    @property
    def weights(self) -> Tensor:
        """What a unit of squared error of each column costs at last; (groups, columns)."""
        return self.spread.diagonal(dim1=1, dim2=2).pow(-2)


def hessian_of(node: onnx.NodeProto, shape: tuple[int, ...], x: Tensor) -> Hessian:
    """Factor the mean Hessian over all positions of all images.

    Args:
        node: A convolution or linear layer.
        shape: Of its weight.
        x: What it reads, (N, ...).
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
    """What each output position multiplies the rows by: (groups, columns, positions)."""
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
    """Round rows column by column, passing errors on; weights that are 0 stay 0.

    Args:
        rows: Real weights (groups, rows, columns).
        delta: Their scales (groups, rows).
        hessian: Of the same groups and columns.
        choose: Asked for the integers of one column, given its values in steps of ``delta``,
            (groups, rows), and what a unit of squared error costs there, (groups, 1).

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
