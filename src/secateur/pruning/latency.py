"""Greedy choice of widths for a limit on latency.

Greedy as in NetAdapt (Yang et al. 2018, algorithm 1), with measured layers as in HALP (Shen et al.
2022). Starting from the full network, each step narrows the group that saves the most time for the
importance it loses, with all other groups at their current width, because the cost of a layer is
the product of its input and output width. A step may skip widths, because kernels work on blocks
and widths between blocks save nothing. At the end, groups grow again within the remaining time, so
that no width is kept that is slower than a larger one.

The quality of a network is modeled as the product, over its layers, of the remaining fraction of
importance. The loss is therefore the sum of -log(fraction). It treats wide and narrow layers alike,
counts a residual trunk once for each layer that writes to it, and makes the last channels of a
layer the most expensive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from secateur.benchmarking.layer_timer import Layer, LayerTimer, Precision
from secateur.benchmarking.network_timer import NetworkTimer
from secateur.console import progress
from secateur.errors import NetworkError
from secateur.pruning.channels import Group, Prunable, Scores
from secateur.pruning.geometry import Geometry
from secateur.pruning.plan import Plan
from secateur.pruning.surgery import rebuild
from secateur.runtimes import Runtime

LOOK_AHEAD = 4
"""Number of smaller candidate widths that a step may choose from."""
MOST_WIDTHS = 32
"""Largest number of candidate widths of a group; wide groups use every second, third ... multiple
of ``round_to``."""
ATTEMPTS = 4
"""Number of networks that are built and timed before failing."""
TOLERANCE = 0.05
"""Accepted relative deviation of the measured latency from the target."""


@dataclass(frozen=True)
class LatencyPlan:
    """Widths within a limit on latency, with measurements.

    Attributes:
        plan: The plan of removal.
        widths: Remaining steps of each group.
        unpruned: Measured milliseconds of the unpruned network.
        pruned: Measured milliseconds of the smaller network, timed in turns.
        predicted: Milliseconds predicted from the layers.
        kept: Product over all layers of the remaining fraction of importance, in (0, 1].
    """

    plan: Plan
    widths: dict[str, int]
    unpruned: float
    pruned: float
    predicted: float
    kept: float

    @property
    def ratio(self) -> float:
        """Measured latency relative to the unpruned network."""
        return self.pruned / self.unpruned

    def merit(self, target: float) -> tuple[bool, float]:
        """Sort key: within ``target`` first, then by ``kept``; others by distance to the target."""
        within = self.ratio <= target
        return within, self.kept if within else -self.ratio

    def __str__(self) -> str:
        """Summary in one line."""
        return (
            f"{self.unpruned:.3f} ms -> {self.pruned:.3f} ms, {self.ratio:.2f} of it "
            f"(predicted {self.predicted:.3f} ms)"
        )


class LayerTimes(Protocol):
    """Times layers, as :class:`secateur.benchmarking.layer_timer.LayerTimer` does."""

    def __call__(self, layer: Layer) -> float:
        """Latency of a layer relative to the reference layer."""

    @property
    def reference(self) -> Runtime:
        """The reference layer, for :meth:`NetworkTimes.time`."""


class NetworkTimes(Protocol):
    """Times networks, as :class:`secateur.benchmarking.network_timer.NetworkTimer` does."""

    def load(self, network: nn.Module) -> Runtime:
        """Prepare a network to run."""

    def time(self, *networks: Runtime) -> list[float]:
        """Milliseconds of each, timed in turns."""


def reach_latency(
    model: nn.Module,
    prunable: Prunable,
    scores: Mapping[str, Scores],
    plan: Callable[[Mapping[str, int]], Plan],
    target: float,
    round_to: int,
    layer_times: LayerTimes,
    network_timer: NetworkTimes,
) -> LatencyPlan:
    """Find the widths that lose the least importance within ``target`` of the network's latency.

    Widths are chosen by the latencies of layers. The smaller network is then built and timed in
    turns with the unpruned one. If it misses the target, the model of the time outside of layers is
    corrected and widths are chosen again.

    Args:
        model: Any network; not modified.
        prunable: Removable channels of the same network.
        scores: For each group, the importance of each unit, shape (units,).
        plan: From the remaining steps of each group to the plan.
        target: Largest remaining fraction of the latency, in (0, 1].
        round_to: Widths are multiples of this, or the full width.
        layer_times: Time of a layer.
        network_timer: Times the unpruned and smaller networks.

    Raises:
        NetworkError: The target cannot be reached.
    """
    unpruned = network_timer.load(model)
    first, reference = network_timer.time(unpruned, layer_times.reference)
    full = first / reference
    choice = Choice(prunable, scores, Geometry(model, prunable), round_to, layer_times, full)
    best, tried = None, None
    for _ in range(ATTEMPTS):
        # The middle of the accepted range, because measurements vary.
        widths = choice.within((1 - TOLERANCE / 2) * target * full)
        if widths == tried:
            break
        tried, leaves = widths, plan(widths)
        now, after = network_timer.time(unpruned, network_timer.load(rebuild(model, leaves)))
        predicted = choice.latency(widths) / full * now
        result = LatencyPlan(leaves, widths, now, after, predicted, choice.kept(widths))
        if best is None or result.merit(target) > best.merit(target):
            best = result
        if (1 - TOLERANCE) * target <= result.ratio <= target:
            break
        choice.learn(widths, result.ratio * full)
    assert best is not None
    if best.ratio > (1 + TOLERANCE) * target:
        raise NetworkError(
            "target cannot be reached",
            where=f"target = {target:g} of latency",
            found=f"{best.ratio:.3f} in the fastest widths that were tried",
            remedy="what is not in the groups stays: give a larger target",
        )
    return best


class Choice:
    """Candidate widths of every group, with the latency and loss of any combination.

    The time outside of layers (adding, concatenating, shuffling, pooling, calling) is modeled as a
    fixed part plus a part proportional to the number of elements that layers output. Initially it
    is all proportional.

    Args:
        prunable: The removable channels.
        scores: For each group, the importance of each unit, shape (units,).
        geometry: Geometry of the same network.
        round_to: Widths are multiples of this, or the full width.
        layer_times: Time of a layer, in any unit.
        full: Latency of the unpruned network, in the same unit.
    """

    def __init__(
        self,
        prunable: Prunable,
        scores: Mapping[str, Scores],
        geometry: Geometry,
        round_to: int,
        layer_times: Callable[[Layer], float],
        full: float,
    ) -> None:
        self.geometry, self.layer_times = geometry, layer_times
        self.losses = {
            group.name: len(list(group.makers())) * losses(scores[group.name], group.steps)
            for group in prunable.groups
        }
        self.candidates = {
            group.name: candidates(group, round_to, self.losses[group.name])
            for group in prunable.groups
        }
        self.unpruned = {group.name: group.steps for group in prunable.groups}
        self._sharing = _sharing(geometry)
        layers = geometry.layers({})
        self._fixed, self._numbers = 0.0, sum(layer.elements for layer in layers)
        self._rest = full - sum(map(layer_times, layers))
        self._moving = self._rest / self._numbers

    def latency(self, widths: Mapping[str, int]) -> float:
        """Predicted latency of the network in these widths."""
        return self._fixed + self._variable(widths, None)

    def _variable(self, widths: Mapping[str, int], among: Iterable[int] | None) -> float:
        """Predicted time of all calls, or those ``among``, and of moving their results."""
        layers = self.geometry.layers(widths, among)
        return sum(self.layer_times(layer) + self._moving * layer.elements for layer in layers)

    def learn(self, widths: Mapping[str, int], measured: float) -> None:
        """Fit the two parts so that the prediction at ``widths`` is ``measured``."""
        layers = self.geometry.layers(widths)
        numbers = sum(layer.elements for layer in layers)
        rest = measured - sum(map(self.layer_times, layers))
        if numbers < self._numbers:
            self._moving = max(0.0, (self._rest - rest) / (self._numbers - numbers))
        self._fixed = rest - self._moving * numbers

    def kept(self, widths: Mapping[str, int]) -> float:
        """Product over all layers of the remaining fraction of importance."""
        return math.exp(-sum(self.losses[name][width] for name, width in widths.items()))

    def within(self, limit: float) -> dict[str, int]:
        """Widths with a predicted latency of at most ``limit``, or the fastest widths."""
        widths = dict(self.unpruned)
        first = now = self.latency(widths)
        steps: dict[str, _Step] = {}
        stale = set(widths)
        with progress("widths for latency", 100) as tick:
            while now > limit:
                for name in stale:
                    smaller = [width for width in self.candidates[name] if width < widths[name]]
                    result = self._steps(name, widths, smaller[-LOOK_AHEAD:])
                    steps[name] = max(result, key=_saved_per_loss, default=_Step(name, 0, 0.0, 0.0))
                best = max(steps.values(), key=_saved_per_loss)
                if best.extra >= 0:
                    break
                widths[best.group] = best.width
                now += best.extra
                stale = self._sharing[best.group]
                share = min(1.0, (first - now) / (first - limit))
                tick.advance(int(99 * share) - tick.done, note=f"{now / first:.2f} of latency")
            self._grow(widths, limit - now)
            tick.advance(100 - tick.done)
        return widths

    def _grow(self, widths: dict[str, int], left: float) -> None:
        """Widen in place the groups that gain the most for their time, within the time ``left``."""
        steps: dict[str, list[_Step]] = {}
        stale = set(widths)
        while True:
            for name in stale:
                larger = [width for width in self.candidates[name] if width > widths[name]]
                steps[name] = self._steps(name, widths, larger)
            fitting = [
                step for some in steps.values() for step in some if step.extra <= max(left, 0.0)
            ]
            if not fitting:
                return
            best = max(fitting, key=_gained_per_time)
            widths[best.group] = best.width
            left -= best.extra
            stale = self._sharing[best.group]

    def _steps(self, name: str, widths: Mapping[str, int], to: Iterable[int]) -> list[_Step]:
        touched, losses = self.geometry.touched[name], self.losses[name]
        now = self._variable(widths, touched)
        return [
            _Step(
                name,
                width,
                self._variable({**widths, name: width}, touched) - now,
                float(losses[width] - losses[widths[name]]),
            )
            for width in to
        ]


@dataclass(frozen=True)
class _Step:
    """A change of a group's width, with its change in time and loss."""

    group: str
    width: int
    extra: float
    loss: float


LEAST_LOSS = 1e-9
"""Importance of a unit that has none, so that no step is free."""


def _saved_per_loss(step: _Step) -> float:
    return -step.extra / max(step.loss, LEAST_LOSS)


def _gained_per_time(step: _Step) -> float:
    return math.inf if step.extra <= 0 else -step.loss / step.extra


def _sharing(geometry: Geometry) -> dict[str, set[str]]:
    """For each group, the groups that share a layer with it, including itself."""
    sets = {name: set(numbers) for name, numbers in geometry.touched.items()}
    return {
        name: {other for other, second in sets.items() if first & second} | {name}
        for name, first in sets.items()
    }


def losses(scores: Scores, steps: int) -> npt.NDArray[np.float64]:
    """-log of the remaining fraction of importance at each number of steps, shape (steps + 1,).

    Infinite at 0 steps, and below ``steps`` if units have infinite importance.

    Args:
        scores: Importance of each unit, non-negative, shape (units,).
        steps: Number of widths; units are removed evenly, lowest scores first.
    """
    if not np.isfinite(scores).all():
        return np.where(np.arange(steps + 1) == steps, 0.0, np.inf)
    ranked = np.sort(scores)[::-1] if scores.any() else np.ones(len(scores))
    sums = np.concatenate([[0.0], np.cumsum(ranked)])
    stay = np.arange(steps + 1) * len(scores) // steps
    with np.errstate(divide="ignore"):
        return -np.log(sums[stay] / sums[-1])


def candidates(group: Group, round_to: int, losses: npt.NDArray[np.float64]) -> list[int]:
    """Candidate widths in steps, increasing: multiples of ``round_to``, and the full width."""
    stride = group.stride(round_to)
    stride *= math.ceil(group.steps / stride / MOST_WIDTHS)
    widths = [*range(stride, group.steps, stride), group.steps]
    return [width for width in widths if np.isfinite(losses[width])]


def plan_latency(
    model: nn.Module,
    prunable: Prunable,
    scores: Mapping[str, Scores],
    plan: Callable[[Mapping[str, int]], Plan],
    target: float,
    round_to: int,
    precision: Precision,
    threads: int,
) -> LatencyPlan:
    """Run :func:`reach_latency` with timings on this machine; timings of layers are cached.

    Args:
        model: Any network; not modified.
        prunable: Removable channels of the same network.
        scores: For each group, the importance of each unit, shape (units,).
        plan: From the remaining steps of each group to the plan.
        target: Largest remaining fraction of the latency, in (0, 1].
        round_to: Widths are multiples of this, or the full width.
        precision: Precision of the exported file.
        threads: Threads inside one operator.

    Raises:
        NetworkError: The target cannot be reached, or the network cannot be exported.
    """
    if not isinstance(prunable.example, Tensor):
        raise NetworkError("latency needs a network of one input")
    layer_times = LayerTimer(precision, threads)
    network_timer = NetworkTimer(prunable.example.shape[1:], precision, threads)
    try:
        return reach_latency(
            model, prunable, scores, plan, target, round_to, layer_times, network_timer
        )
    finally:
        layer_times.save()
