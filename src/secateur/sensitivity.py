"""How much can go before accuracy falls, without retraining: always from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.pruning.channels import Prunable
from secateur.pruning.masks import effective_sparsity, make_masks
from secateur.statistics import Interval, paired_drop, proportion

Evaluate = Callable[[nn.Module], npt.NDArray[np.bool_]]
"""Tells for each validation image, shape (n,), whether the network is right; the same each time."""


@dataclass(frozen=True)
class ScanPoint:
    """One evaluation of a masked network.

    Attributes:
        layer: ``network`` where every layer is pruned alike, else the only one that is.
        fraction: What was asked for, in [0, 1).
        effective_sparsity: Zeros among the prunable weights of ``layer`` as they were evaluated.
        correct: Images the network is right on.
        n: Images.
        accuracy: In [0, 1], with its 95 % interval.
        drop: Accuracy lost against the unpruned network on the same images, with its interval.
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
    def from_dict(cls, said: dict[str, Any]) -> ScanPoint:
        """Read what :meth:`to_dict` wrote."""
        intervals = {name: Interval(*said[name]) for name in ("accuracy", "drop")}
        return cls(**(said | intervals))


def scan_network(
    model: nn.Module,
    prunable: Prunable,
    fractions: Iterable[float],
    evaluate: Evaluate,
    progress: Callable[[str], None] | None = None,
) -> list[ScanPoint]:
    """Prune every layer by the same fraction, for each of ``fractions``.

    The first point is that of fraction 0, the unpruned network; it is evaluated once.

    Args:
        model: Ends as it began, bit for bit.
        prunable: Of the same network.
        fractions: Each in [0, 1).
        evaluate: Called once for each fraction, and once without pruning.
        progress: Told of each point, in words.

    Raises:
        SecateurError: The masks were not in force when ``evaluate`` returned.
    """
    levels = [("network", 0.0), *(("network", f) for f in fractions if f > 0)]
    return _scan(model, prunable, levels, evaluate, progress)


def scan_layers(
    model: nn.Module,
    prunable: Prunable,
    fractions: Iterable[float],
    evaluate: Evaluate,
    progress: Callable[[str], None] | None = None,
) -> list[ScanPoint]:
    """Prune one group or linear layer at a time, for each of ``fractions``; as scan_network.

    The unpruned network is evaluated once, and gives no point.
    """
    above_zero = [fraction for fraction in fractions if fraction > 0]
    levels = [("network", 0.0), *((name, f) for name in prunable.names for f in above_zero)]
    return _scan(model, prunable, levels, evaluate, progress)[1:]


def choose_threshold(points: Sequence[ScanPoint], tolerance_points: float) -> float:
    """Largest scanned fraction such that it, and every smaller one, loses at most the tolerance.

    What counts is the upper end of the drop's interval, in percentage points: a loss that cannot be
    told from one beyond the tolerance is not taken. 0.0 where no fraction qualifies.

    Args:
        points: Of one scan of one layer, or of the network, in any order.
        tolerance_points: In percentage points.

    Raises:
        ValueError: The points are of more than one layer.
    """
    if len({point.layer for point in points}) > 1:
        raise ValueError("points of more than one layer have no common threshold")
    threshold = 0.0
    for point in sorted(points, key=lambda point: point.fraction):
        if point.fraction > 0:  # nothing pruned loses nothing, however wide its interval
            if 100 * point.drop.high > tolerance_points:
                break
            threshold = point.fraction
    return threshold


def _scan(
    model: nn.Module,
    prunable: Prunable,
    levels: Sequence[tuple[str, float]],
    evaluate: Evaluate,
    progress: Callable[[str], None] | None,
) -> list[ScanPoint]:
    """Points of ``levels``; the first must be fraction 0, which all are compared with."""
    points: list[ScanPoint] = []
    reference: npt.NDArray[np.bool_] | None = None
    with _restored(model) as restore:
        for layer, fraction in levels:
            restore()
            right, sparsity = _evaluate_pruned(model, prunable, layer, fraction, evaluate)
            if reference is None:
                reference = right
            correct = int(right.sum())
            accuracy, drop = proportion(correct, right.size), paired_drop(reference, right)
            points.append(ScanPoint(layer, fraction, sparsity, correct, right.size, accuracy, drop))
            if progress is not None:
                progress(f"{layer} {fraction:g}: {100 * accuracy.value:.2f} %")
    return points


def _evaluate_pruned(
    model: nn.Module, prunable: Prunable, layer: str, fraction: float, evaluate: Evaluate
) -> tuple[npt.NDArray[np.bool_], float]:
    """Prune ``model`` in place and evaluate it; return also the zeros there were."""
    whole = layer == "network"
    masks = make_masks(model, prunable, fraction if whole else {layer: fraction})
    masks.apply_(model)
    right = evaluate(model)
    # Published scans were flat because what they evaluated was not what they had pruned.
    if not masks.in_force(model):
        raise SecateurError(
            "masks were not in force during evaluation",
            where=f"scan of {layer} at {fraction:g}",
            expected="masked weights at zero",
            found="masked weights that are not",
        )
    return right, effective_sparsity(model, prunable, None if whole else layer)


@contextmanager
def _restored(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Give a function that puts ``model`` back as it is now; called at the end in any case."""
    tensors = [*model.parameters(), *model.buffers()]
    copies = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def restore() -> None:
        for tensor, saved in zip(tensors, copies, strict=True):
            tensor.copy_(saved)

    try:
        yield restore
    finally:
        restore()
