"""Widths for a time limit: from whole, always the step that saves most time for what it loses.

Greedy as NetAdapt (Yang et al. 2018, algorithm 1), with measured layers as in HALP (Shen et al.
2022), but a step is taken wherever time saved per importance lost is largest, with all other groups
at their width of that moment: neighbors multiply, so what a width saves depends on theirs. A step
may jump over widths, because kernels work in blocks and between two blocks nothing is saved. At the
end groups grow back where there is time left; so a width that is slower than a larger one never
stays.

What stays of a network, whose layers are in series, is taken as the product of what stays of each
layer: its share of the importance of all it makes. So the loss is the sum of -log(share). It is the
same for wide and narrow layers, counts a trunk as often as layers make it, and makes the last
channels of any layer the dearest.
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
"""Candidate widths below a group's own that a step may go to."""
MOST_WIDTHS = 32
"""Candidates of a group: of wide groups every second, third ... multiple of ``round_to``."""
ATTEMPTS = 4
"""Networks that are built and timed before giving up."""
TOLERANCE = 0.05
"""Of the target: how far measured latency may lie below it, or where all fails above it."""


@dataclass(frozen=True)
class LatencyPlan:
    """Widths that keep to a time limit, and what they take.

    Attributes:
        plan: What leaves.
        widths: Steps that stay of each group.
        unpruned: Measured milliseconds of the network as it is.
        pruned: Measured milliseconds of the smaller one, timed in turns with it.
        predicted: Milliseconds that the layers' sum says.
        kept: The product over all layers of the share of importance that stays, in (0, 1].
    """

    plan: Plan
    widths: dict[str, int]
    unpruned: float
    pruned: float
    predicted: float
    kept: float

    @property
    def ratio(self) -> float:
        """Measured latency over that of the unpruned network."""
        return self.pruned / self.unpruned

    def merit(self, target: float) -> tuple[bool, float]:
        """To be within ``target`` comes first, then what is kept; outside, to be near it."""
        within = self.ratio <= target
        return within, self.kept if within else -self.ratio

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.unpruned:.3f} ms -> {self.pruned:.3f} ms, {self.ratio:.2f} of it "
            f"(predicted {self.predicted:.3f} ms)"
        )


class LayerTimes(Protocol):
    """What times layers: :class:`secateur.benchmarking.layer_timer.LayerTimer`, or a test."""

    def __call__(self, layer: Layer) -> float:
        """Time of a layer over that of the reference layer."""

    @property
    def reference(self) -> Runtime:
        """The reference layer, for :meth:`NetworkTimes.time`."""


class NetworkTimes(Protocol):
    """Times networks: :class:`secateur.benchmarking.network_timer.NetworkTimer`, or a test's."""

    def load(self, network: nn.Module) -> Runtime:
        """Make a network ready to run."""

    def time(self, *networks: Runtime) -> list[float]:
        """Milliseconds of each, timed in turns."""


def reach_latency(
    model: nn.Module,
    prunable: Prunable,
    scores: Mapping[str, Scores],
    plan: Callable[[Mapping[str, int]], Plan],
    target: float,
    round_to: int,
    clock: LayerTimes,
    network_timer: NetworkTimes,
) -> LatencyPlan:
    """Find the widths that lose least importance within ``target`` of the network's latency.

    Widths are chosen by the layers' times; the smaller network is then built and timed beside the
    unpruned one. Where it misses, what it takes beyond its layers is learned, and widths are chosen
    again.

    Args:
        model: Left as it is.
        prunable: Of the same network.
        scores: For each group the importance of each unit, shape (units,).
        plan: From steps that stay of each group to the plan.
        target: At most this share of the latency stays, in (0, 1].
        round_to: Widths are multiples of it, or whole.
        clock: Time of a layer.
        network_timer: Times the network and the smaller ones.

    Raises:
        NetworkError: The target cannot be reached.
    """
    unpruned = network_timer.load(model)
    first, reference = network_timer.time(unpruned, clock.reference)
    full = first / reference
    choice = Choice(prunable, scores, Geometry(model, prunable), round_to, clock, full)
    best, tried = None, None
    for _ in range(ATTEMPTS):
        # The middle of what is accepted, because no two measurements agree to the digit.
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
    """The widths of every group, and what each combination takes and loses.

    What a network takes beyond its layers' sum (adding, concatenating, shuffling, pooling, calling)
    is a fixed part, and a part that grows with how many numbers the layers make; at first, it is
    all of the second kind.

    Args:
        prunable: What can go.
        scores: For each group the importance of each unit, shape (units,).
        geometry: Of the same network.
        round_to: Widths are multiples of it, or whole.
        clock: Time of a layer, in any unit.
        full: Time of the network as it is, in the same unit.
    """

    def __init__(
        self,
        prunable: Prunable,
        scores: Mapping[str, Scores],
        geometry: Geometry,
        round_to: int,
        clock: Callable[[Layer], float],
        full: float,
    ) -> None:
        self.geometry, self.clock = geometry, clock
        self.losses = {
            group.name: len(list(group.makers())) * losses(scores[group.name], group.steps)
            for group in prunable.groups
        }
        self.candidates = {
            group.name: candidates(group, round_to, self.losses[group.name])
            for group in prunable.groups
        }
        self.whole = {group.name: group.steps for group in prunable.groups}
        self._sharing = _sharing(geometry)
        layers = geometry.layers({})
        self._fixed, self._numbers = 0.0, sum(layer.elements for layer in layers)
        self._rest = full - sum(map(clock, layers))
        self._moving = self._rest / self._numbers

    def latency(self, widths: Mapping[str, int]) -> float:
        """Time of the network in these widths."""
        return self._fixed + self._variable(widths, None)

    def _variable(self, widths: Mapping[str, int], among: Iterable[int] | None) -> float:
        """Time of all calls, or those ``among``, and of moving their results."""
        layers = self.geometry.layers(widths, among)
        return sum(self.clock(layer) + self._moving * layer.elements for layer in layers)

    def learn(self, widths: Mapping[str, int], measured: float) -> None:
        """Correct the two parts, so that the network in ``widths`` takes ``measured``."""
        layers = self.geometry.layers(widths)
        numbers = sum(layer.elements for layer in layers)
        rest = measured - sum(map(self.clock, layers))
        if numbers < self._numbers:
            self._moving = max(0.0, (self._rest - rest) / (self._numbers - numbers))
        self._fixed = rest - self._moving * numbers

    def kept(self, widths: Mapping[str, int]) -> float:
        """Product over all layers of the share of importance that stays."""
        return math.exp(-sum(self.losses[name][width] for name, width in widths.items()))

    def within(self, limit: float) -> dict[str, int]:
        """Widths that take at most ``limit``, or as little as steps lead to."""
        widths = dict(self.whole)
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
        """Widen in place what gains most for its time, while there is time ``left``."""
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
        touched, lost = self.geometry.touched[name], self.losses[name]
        now = self._variable(widths, touched)
        return [
            _Step(
                name,
                width,
                self._variable({**widths, name: width}, touched) - now,
                float(lost[width] - lost[widths[name]]),
            )
            for width in to
        ]


@dataclass(frozen=True)
class _Step:
    """A group's way to another width: extra time and loss; either may be negative."""

    group: str
    width: int
    extra: float
    loss: float


LEAST_LOSS = 1e-9
"""What a unit without importance counts, so that a step is never free."""


def _saved_per_loss(step: _Step) -> float:
    return -step.extra / max(step.loss, LEAST_LOSS)


def _gained_per_time(step: _Step) -> float:
    return math.inf if step.extra <= 0 else -step.loss / step.extra


def _sharing(geometry: Geometry) -> dict[str, set[str]]:
    """For each group, those that have a layer in common with it, itself among them."""
    sets = {name: set(numbers) for name, numbers in geometry.touched.items()}
    return {
        name: {other for other, second in sets.items() if first & second} | {name}
        for name, first in sets.items()
    }


def losses(scores: Scores, steps: int) -> npt.NDArray[np.float64]:
    """-log of the share of importance that stays at each number of steps, shape (steps + 1,).

    Infinite at none; and at all but ``steps``, where units are infinitely important.

    Args:
        scores: Of each unit, zero or more, shape (units,).
        steps: Widths there are; units leave evenly, those that score lowest first.
    """
    if not np.isfinite(scores).all():
        return np.where(np.arange(steps + 1) == steps, 0.0, np.inf)
    ranked = np.sort(scores)[::-1] if scores.any() else np.ones(len(scores))
    sums = np.concatenate([[0.0], np.cumsum(ranked)])
    stay = np.arange(steps + 1) * len(scores) // steps
    with np.errstate(divide="ignore"):
        return -np.log(sums[stay] / sums[-1])


def candidates(group: Group, round_to: int, lost: npt.NDArray[np.float64]) -> list[int]:
    """Widths to choose from, in steps, rising: multiples of ``round_to``, and all of it."""
    stride = group.stride(round_to)
    stride *= math.ceil(group.steps / stride / MOST_WIDTHS)
    widths = [*range(stride, group.steps, stride), group.steps]
    return [width for width in widths if np.isfinite(lost[width])]


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
    """:func:`reach_latency` on this machine; layers that were timed before are looked up.

    Args:
        model: Left as it is.
        prunable: Of the same network.
        scores: For each group the importance of each unit, shape (units,).
        plan: From steps that stay of each group to the plan.
        target: At most this share of the latency stays, in (0, 1].
        round_to: Widths are multiples of it, or whole.
        precision: Of the file that will ship.
        threads: Inside one operator.

    Raises:
        NetworkError: The target cannot be reached, or the network cannot be exported.
    """
    if not isinstance(prunable.example, Tensor):
        raise NetworkError("latency needs a network of one input")
    clock = LayerTimer(precision, threads)
    network_timer = NetworkTimer(prunable.example.shape[1:], precision, threads)
    try:
        return reach_latency(model, prunable, scores, plan, target, round_to, clock, network_timer)
    finally:
        clock.save()
