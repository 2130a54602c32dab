"""Sensitivity scan: accuracy against the fraction pruned, without retraining."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from secateur import environment
from secateur.console import say
from secateur.data import Images, Preparation
from secateur.pruning.channels import Group, Prunable, Scores
from secateur.pruning.importance import channel_importance
from secateur.pruning.masks import weight_masks
from secateur.sensitivity.engine import Bools, EagerEngine, Engine, Level, Progress
from secateur.sensitivity.fast_engine import FastEngine
from secateur.sensitivity.tape import Unsupported
from secateur.statistics import Interval, paired_drop, proportion


@dataclass(frozen=True)
class ScanPoint:
    """One evaluation of a masked network.

    Attributes:
        layer: ``network`` if every layer is pruned, else the pruned layer.
        fraction: Requested fraction, in [0, 1).
        effective_sparsity: Fraction of zeros among the evaluated weights that produce ``layer``'s
            channels, or of ``layer`` itself.
        correct: Number of correct images.
        n: Number of images.
        accuracy: Accuracy in [0, 1] with its 95 % interval.
        drop: Loss of accuracy against the unpruned network on the same images, with its interval.
    """

    layer: str
    fraction: float
    effective_sparsity: float
    correct: int
    n: int
    accuracy: Interval
    drop: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the point as plain data."""
        return asdict(self) | {"accuracy": list(self.accuracy), "drop": list(self.drop)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ScanPoint:
        """The inverse of :meth:`to_dict`."""
        intervals = {name: Interval(*fields[name]) for name in ("accuracy", "drop")}
        return cls(**(fields | intervals))


def scan_network(
    model: nn.Module,
    prunable: Prunable,
    weights: Sequence[str],
    fractions: Iterable[float],
    images: Images,
    prepare: Preparation,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> list[ScanPoint]:
    """Prune every layer by the same fraction, for each of ``fractions``.

    In each group of n units, the floor(fraction * n) of smallest l2 norm are masked, and so are
    single weights of the layers in ``weights``. The first point is the unpruned network, which is
    evaluated once.

    Args:
        model: Restored bit for bit.
        prunable: Removable channels of the same network.
        weights: Linear layers pruned by single weights; groups produced only by them are excluded.
        fractions: Each in [0, 1).
        images: Images on the model's device.
        prepare: Maps stored pixels to the network's input.
        progress: Called with the number of further finished points.
        engine: Engine; by default the fastest that supports the network.

    Raises:
        NetworkError: Weights are not finite.
        SecateurError: Masks were not in force during an evaluation.
    """
    above_zero = [fraction for fraction in fractions if fraction > 0]
    points = _Candidates(model, prunable, weights)
    levels = [points.level("network", fraction) for fraction in above_zero]
    return _scan(model, levels, images, prepare, progress, engine)


def scan_layers(
    model: nn.Module,
    prunable: Prunable,
    weights: Sequence[str],
    fractions: Iterable[float],
    images: Images,
    prepare: Preparation,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> list[ScanPoint]:
    """Prune one group or linear layer at a time, for each of ``fractions``; see scan_network.

    Groups are first, then ``weights``. The unpruned network is evaluated once without a point;
    ``progress`` counts it.
    """
    above_zero = [fraction for fraction in fractions if fraction > 0]
    points = _Candidates(model, prunable, weights)
    levels = [points.level(name, f) for name in points.names for f in above_zero]
    return _scan(model, levels, images, prepare, progress, engine)[1:]


def choose_threshold(points: Sequence[ScanPoint], tolerance_points: float) -> float:
    """Largest scanned fraction at which, and below which, the loss is within the tolerance.

    The upper end of the drop's interval is compared with the tolerance. Returns 0.0 if no fraction
    qualifies.

    Args:
        points: Points of one layer or of the network, in any order.
        tolerance_points: Tolerance in percentage points.

    Raises:
        ValueError: The points are of more than one layer.
    """
    if len({point.layer for point in points}) > 1:
        raise ValueError("points of more than one layer have no common threshold")
    threshold = 0.0
    for point in sorted(points, key=lambda point: point.fraction):
        if point.fraction > 0:  # the unpruned network has no loss
            if 100 * point.drop.high > tolerance_points:
                break
            threshold = point.fraction
    return threshold


def fastest_engine(model: nn.Module, prepare: Preparation, images: Images) -> Engine:
    """Return the fast engine if it supports the network, else the eager one."""
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        return EagerEngine(model)
    shape = (len(images), *prepare(images.pixels[:1]).shape[1:])
    try:
        return FastEngine(model, shape, environment.threads())
    except Unsupported as why:
        return _plain(model, why)


def _plain(model: nn.Module, why: Unsupported) -> Engine:
    say(f"scan: runs the whole network for each point, because {why}")
    return EagerEngine(model)


class _Candidates:
    """Prunable groups and weights, with their scores."""

    def __init__(self, model: nn.Module, prunable: Prunable, weights: Sequence[str]) -> None:
        self._model, self._weights = model, weights
        self._scores: dict[str, Scores] = channel_importance(model, prunable, "l2")
        self._groups = {
            group.name: group
            for group in prunable.groups
            if not all(maker.module in weights for maker in group.makers())
        }
        self.names = [*self._groups, *weights]

    def level(self, layer: str, fraction: float) -> Level:
        """Prune one layer, or all for ``network``."""
        named = self.names if layer == "network" else [layer]
        groups = [self._groups[name] for name in named if name in self._groups]
        linear = [name for name in named if name not in self._groups]
        kept = weight_masks(self._model, linear, fraction).tensors
        return Level(
            layer,
            fraction,
            [(group, self._gone(group, fraction)) for group in groups],
            {name: kept[f"{name}.weight"] for name in linear},
        )

    def _gone(self, group: Group, fraction: float) -> Bools:
        # 0.29 * 100 is 28.999999999999996 in floating point; 29 is meant. One unit is always kept.
        many = min(group.units - 1, math.floor(fraction * group.units + 1e-9 * group.units))
        masked = np.zeros(group.units, np.bool_)
        masked[np.argsort(self._scores[group.name], kind="stable")[:many]] = True
        return masked


def _scan(
    model: nn.Module,
    levels: Sequence[Level],
    images: Images,
    prepare: Preparation,
    progress: Progress | None,
    engine: Engine | None,
) -> list[ScanPoint]:
    """Points of the unpruned network and of ``levels``."""
    every = [Level("network", 0.0), *levels]
    engine = engine or fastest_engine(model, prepare, images)
    try:
        right = engine.correct(every, images, prepare, progress)
    except Unsupported as why:
        right = _plain(model, why).correct(every, images, prepare, progress)
    points = []
    for level, own in zip(every, right, strict=True):
        correct = int(own.sum())
        points.append(
            ScanPoint(
                level.layer,
                level.fraction,
                level.zeros(model),
                correct,
                len(images),
                proportion(correct, len(images)),
                paired_drop(right[0], own),
            )
        )
    return points
