"""Importance of channels and weights; the lowest are removed first."""

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

    Scores use the filters that produce a unit in all convolutions and linear layers, concatenated
    to one vector w with gradient g.

    - ``l1``, ``l2``: the norm of w (Li et al. 2017, section 3.1).
    - ``batch_norm``: the mean of \|gamma\| over the batch-norms that scale it (Liu et al. 2017,
      section 3). A group without batch-norm scores infinity, so that it is not pruned.
    - ``taylor``: (sum of g w)^2 of each filter, summed (Molchanov et al. 2019, eq. 8 with the
      filter as the structure); gradients are those of the last ``backward``. A group without
      gradients (frozen layers) scores infinity, so that it is not pruned.
    - ``fpgm``: the sum of distances to all other filters of the layer (He et al. 2019, eq. 4).
    - ``lamp``: w^2 over the sum of all squares in the group that are at least as large (Lee et al.
      2021, eq. 1, for channels); intended for ``global`` scope.
    - ``random``: uniform in [0, 1), a control.

    Args:
        model: Any network; not modified.
        prunable: Removable channels of the same network.
        importance: One of the above.
        seed: Seed of the random scores.

    Returns:
        From group to scores, float64 (units,), non-negative.

    Raises:
        NetworkError: Weights are not finite, or ``taylor`` has no gradients.
        ValueError: The importance is unknown.
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
        trains = any(parameter.requires_grad for parameter in model.parameters())
        raise NetworkError(
            "no gradients to judge by",
            where=next(iter(prunable.groups[0].makers())).axis.tensor,
            found=None if trains else "all layers are frozen",
            remedy="run the loss of some training images backward first"
            if trains
            else "set requires_grad, or choose another importance",
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
"""From name to the function that scores one group, float64 (units,); ``random`` has none."""


def _rows(tensor: Tensor, member: Member) -> Tensor:
    """Weights of each position of a member, float64 (entries, elements)."""
    index = torch.from_numpy(member.index).to(tensor.device)
    moved = tensor.detach().movedim(member.axis.axis, 0).index_select(0, index)
    return moved.reshape(len(index), -1).double()


def weight_importance(weight: Tensor) -> Tensor:
    """Magnitude of each weight (Han et al. 2015, section 3), in the shape of ``weight``."""
    return weight.detach().abs()
