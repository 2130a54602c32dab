"""Fraction to remove from each group: equal, by one threshold, or by sensitivity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from secateur.errors import NetworkError
from secateur.pruning.channels import Prunable, Scores

Scope = Literal["local", "global", "sensitivity"]
Curve = Sequence[tuple[float, float]]
"""Points (fraction removed, loss); all curves share the unit of the loss."""

LEAST = 0.1
"""Smallest fraction of a group to keep if groups compete."""


def local_fractions(prunable: Prunable, fraction: float) -> dict[str, float]:
    """The same fraction of every group, as published (arXiv 2001.04850)."""
    return {group.name: fraction for group in prunable.groups}


def global_fractions(
    prunable: Prunable, scores: Mapping[str, Scores], fraction: float, normalize: bool
) -> dict[str, float]:
    """Remove the channels with the lowest scores of the entire network.

    Args:
        prunable: The removable channels.
        scores: From group to the importance of each unit.
        fraction: Fraction of the channels of all groups, in [0, 1).
        normalize: Divide each group's scores by their mean first, because norms of layers of
            different shapes are not comparable.
    """
    if not prunable.groups:
        return {}
    values, owners, weights = [], [], []
    for number, group in enumerate(prunable.groups):
        own = scores[group.name].copy()
        mean = own[np.isfinite(own)].mean() if np.isfinite(own).any() else 1.0
        if normalize and mean > 0:
            own = own / mean
        spared = max(1, math.ceil(LEAST * group.units))
        own[np.argsort(own, kind="stable")[group.units - spared :]] = np.inf
        values.append(own)
        owners.append(np.full(group.units, number))
        weights.append(np.full(group.units, channels_of(prunable, group.name) / group.units))
    value, owner = np.concatenate(values), np.concatenate(owners)
    weight = np.concatenate(weights)
    order = np.argsort(value, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(weight[order])[:-1]])
    removable = order[(before < fraction * weight.sum() - 1e-9) & np.isfinite(value[order])]
    removed = np.bincount(owner[removable], minlength=len(prunable.groups))
    return {
        group.name: removed[number] / group.units for number, group in enumerate(prunable.groups)
    }


def channels_of(prunable: Prunable, name: str) -> int:
    """Number of layer outputs that belong to a group's units."""
    return sum(len(member.index) for member in prunable.group(name).makers())


def sensitivity_fractions(
    prunable: Prunable, curves: Mapping[str, Curve], fraction: float
) -> dict[str, float]:
    """Remove from each group the fraction at which its curve reaches a loss common to all groups.

    Curves are interpolated linearly, made monotonic, and start at a loss of 0. The common loss is
    that at which ``fraction`` of all channels is removed.

    Args:
        prunable: The removable channels.
        curves: From group to its points.
        fraction: Fraction of all channels, in [0, 1).

    Raises:
        NetworkError: A group has no curve.
    """
    weights = {group.name: channels_of(prunable, group.name) for group in prunable.groups}
    for name in weights:
        if not curves.get(name):
            raise NetworkError("no sensitivity curve", where=name, remedy="scan this layer first")

    def at(loss: float) -> dict[str, float]:
        return {name: _allowed(curves[name], loss) for name in weights}

    def share(fractions: Mapping[str, float]) -> float:
        removed = sum(weights[name] * part for name, part in fractions.items())
        return removed / sum(weights.values())

    low, high = 0.0, max(loss for name in weights for _, loss in curves[name]) + 1e-9
    if share(at(high)) < fraction:
        return at(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(at(middle)) < fraction else (low, middle)
    return at(high)


def _allowed(curve: Curve, loss: float) -> float:
    """Largest fraction at which the monotonic curve is within ``loss``."""
    points = sorted(curve)
    fractions = np.array([0.0, *(fraction for fraction, _ in points)])
    losses = np.maximum.accumulate([0.0, *(value for _, value in points)])
    within = int(np.searchsorted(losses, loss, side="right")) - 1
    if within + 1 >= len(fractions):
        return float(fractions[-1])
    rise = losses[within + 1] - losses[within]
    part = (loss - losses[within]) / rise
    return float(fractions[within] + part * (fractions[within + 1] - fractions[within]))
