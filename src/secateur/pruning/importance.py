"""How much a channel or a weight matters: the smallest go first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import NetworkError
from secateur.pruning.channels import Group, Member, Prunable, Scores

Importance = Literal["l1", "l2", "batch_norm", "taylor", "fpgm", "lamp", "random"]


def channel_importance(
    model: nn.Module, prunable: Prunable, importance: Importance = "l2", seed: int = 0
) -> dict[str, Scores]:
    r"""Score every unit of every group.

    What a unit is made by counts: its filters in all convolutions and linear layers whose outputs
    it has a place in, together as one vector w with gradient g.

    - ``l1``, ``l2``: the norm of w (Li et al. 2017, section 3.1).
    - ``batch_norm``: the mean of \|gamma\| over the batch-norms that scale it (Liu et al. 2017,
      section 3). A group without batch-norm scores infinity, so that it stays whole.
    - ``taylor``: (sum of g w)^2 of each filter, summed (Molchanov et al. 2019, eq. 8 with the
      filter as the structure); gradients are those that ``backward`` left in the network.
      A group without gradients, of frozen layers, scores infinity, so that it stays.
    - ``fpgm``: the sum of distances to all other filters of the layer (He et al. 2019, eq. 4).
    - ``lamp``: w^2 over the sum of the squares that are as large or larger in the group (Lee et al.
      2021, eq. 1, of channels); made for ``global`` scope.
    - ``random``: uniform in [0, 1), the control.

    Args:
        model: Left as it is.
        prunable: Of the same network.
        importance: One of the seven.
        seed: Decides the random scores.

    Returns:
        Group to scores, float64 of shape (units,), zero or more.

    Raises:
        NetworkError: Weights are not finite, or there are no gradients where they are needed.
        ValueError: There is no such importance.
    """
    if importance != "random" and importance not in CRITERIA:
        known = (*CRITERIA, "random")
        raise ValueError(f"importance must be one of {known}, found {importance!r}")
    if importance == "random":
        generator = np.random.default_rng(seed)
        return {group.name: generator.random(group.units) for group in prunable.groups}
    by_group = {group.name: CRITERIA[importance](model, group) for group in prunable.groups}
    frozen = importance == "taylor" and all(np.isinf(s).all() for s in by_group.values())
    if frozen and prunable.groups:
        raise NetworkError(
            "no gradients to judge by",
            where=next(iter(prunable.groups[0].makers())).axis.tensor,
            remedy="run the loss of some training images backward first",
        )
    for name, scores in by_group.items():
        if np.isnan(scores).any():
            raise NetworkError("weights are not finite numbers", where=name, found="nan")
    return by_group


def _norm(order: int) -> Callable[[nn.Module, Group], Scores]:
    def score(model: nn.Module, group: Group) -> Scores:
        powers = np.zeros(group.units)
        for member in group.makers():
            rows = _rows(model.get_parameter(member.axis.tensor), member)
            np.add.at(powers, member.unit, rows.abs().pow(order).sum(1).cpu().numpy())
        return powers ** (1 / order)

    return score


def _taylor(model: nn.Module, group: Group) -> Scores:
    scores = np.zeros(group.units)
    trained = False
    for member in group.makers():
        weight = model.get_parameter(member.axis.tensor)
        if weight.grad is None:
            continue
        trained = True
        change = (_rows(weight, member) * _rows(weight.grad, member)).sum(1).square()
        np.add.at(scores, member.unit, change.cpu().numpy())
    return scores if trained else np.full(group.units, np.inf)


def _fpgm(model: nn.Module, group: Group) -> Scores:
    scores = np.zeros(group.units)
    for member in group.makers():
        rows = _rows(model.get_parameter(member.axis.tensor), member)
        np.add.at(scores, member.unit, torch.cdist(rows, rows).sum(1).cpu().numpy())
    return scores


def _lamp(model: nn.Module, group: Group) -> Scores:
    powers = _norm(2)(model, group) ** 2
    order = np.argsort(-powers, kind="stable")
    scores = np.empty(group.units)
    scores[order] = powers[order] / np.maximum(np.cumsum(powers[order]), np.finfo(float).tiny)
    return scores


def _batch_norm(model: nn.Module, group: Group) -> Scores:
    total, count = np.zeros(group.units), np.zeros(group.units)
    for member in group.members:
        layer = model.get_submodule(member.module)
        scale = member.axis.tensor.endswith("weight")
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and scale:
            gamma = layer.weight.detach().abs().double().cpu().numpy()
            np.add.at(total, member.unit, gamma[member.index])
            np.add.at(count, member.unit, 1)
    return np.where(count > 0, total / np.maximum(count, 1), np.inf)


CRITERIA: dict[str, Callable[[nn.Module, Group], Scores]] = {
    "l1": _norm(1),
    "l2": _norm(2),
    "taylor": _taylor,
    "batch_norm": _batch_norm,
    "fpgm": _fpgm,
    "lamp": _lamp,
}
"""Scores of one group, float64 (units,), by name; `random` is drawn instead."""


def _rows(tensor: Tensor, member: Member) -> Tensor:
    """What each of a member's positions is made of, float64 (entries, elements)."""
    index = torch.from_numpy(member.index).to(tensor.device)
    moved = tensor.detach().movedim(member.axis.axis, 0).index_select(0, index)
    return moved.reshape(len(index), -1).double()


def weight_importance(weight: Tensor) -> Tensor:
    """Magnitude of each weight (Han et al. 2015, section 3), in the shape of ``weight``."""
    return weight.detach().abs()
