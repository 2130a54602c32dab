"""The one road from a network and options to the plan of what leaves it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from secateur import environment, recipe
from secateur.benchmarking.network_timer import NetworkTimer
from secateur.errors import NetworkError
from secateur.pruning.adapt import WidthsRejected
from secateur.pruning.allocation import (
    Curve,
    channels_of,
    global_fractions,
    sensitivity_fractions,
)
from secateur.pruning.blocks import blocks_to_go, find_blocks, plan_blocks
from secateur.pruning.channels import Group, Protected, Prunable, Scores
from secateur.pruning.costs import Costs
from secateur.pruning.find import find_prunable
from secateur.pruning.importance import channel_importance
from secateur.pruning.latency import plan_latency
from secateur.pruning.plan import Plan
from secateur.pruning.realize import realize_widths
from secateur.pruning.surgery import apply_plan
from secateur.pruning.tracing.permanent import is_permanent, permanent_copy
from secateur.pruning.tracing.trace import Example, refuse_compiled

_NORMS = ("l1", "l2", "fpgm")
"""Criteria whose scores compare between layers only once divided by their layer's mean."""


@dataclass(frozen=True, eq=False)
class Start:
    """The network before the first round, which all fractions refer to.

    Attributes:
        prunable: What could be taken out of it.
        network: Its architecture; weights do not matter.
        blocks: Residual blocks that could leave, counted where some do.
    """

    prunable: Prunable
    network: nn.Module
    blocks: int = 0


def start_of(model: nn.Module, example_input: Example, options: recipe.Removal) -> Start:
    """Look at a network before anything leaves it."""
    blocks = len(find_blocks(model, example_input)) if options.depth else 0
    return Start(select_groups(model, example_input, options), model, blocks)


def select_groups(model: nn.Module, example_input: Example, options: recipe.Removal) -> Prunable:
    """What can leave and may: without what is kept, and hidden linear layers that stay."""
    heads = options.attention == "heads"
    prunable = find_prunable(model, example_input, heads=heads)
    names = [name for name, _ in model.named_modules()]
    for pattern in (*options.keep, *options.fractions):
        if not any(matches(name, (pattern,)) for name in names):
            raise NetworkError(
                "no module of that name",
                where=pattern,
                expected="a name of named_modules(), or a pattern such as 'head.*'",
            )
    kept = [g for g in prunable.groups if any(matches(m.layer, options.keep) for m in g.makers())]
    groups = [group for group in prunable.groups if group not in kept]
    if options.linear == "weights":
        groups = [group for group in groups if not only_linear(model, group)]
    protected = (*prunable.protected, *(Protected(g.name, "the options keep it") for g in kept))
    return replace(prunable, groups=tuple(groups), protected=protected)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a module, or one that it is part of, is meant by one of some patterns."""
    parts = name.split(".")
    above = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns for each in above)


def only_linear(model: nn.Module, group: Group) -> bool:
    """Whether all that makes a group's channels are linear layers."""
    return all(isinstance(model.get_submodule(m.module), nn.Linear) for m in group.makers())


def linear_layers(model: nn.Module) -> list[str]:
    """Names of linear layers, in the network's order."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]


def plan_channels(
    model: nn.Module,
    example_input: Example,
    options: recipe.Removal,
    fraction: float,
    *,
    start: Start | None = None,
    seed: int = 0,
    curves: Mapping[str, Curve] | None = None,
    threads: int | None = None,
) -> tuple[Plan, Prunable]:
    """Plan what leaves ``model`` so that ``fraction`` of what was there at the start is gone.

    Args:
        model: What the rounds before left; for ``taylor``, with gradients. Left as it is.
        example_input: As for :func:`secateur.plan_removal`.
        options: How channels are chosen.
        fraction: Of the channels, or with an objective of that cost, in [0, 1).
        start: The network before the first round; by default this one.
        seed: For random importance.
        curves: For ``sensitivity``: of the network at the start, group to (fraction, loss).
        threads: For ``latency``: of the runtime; by default as many as torch computes with.

    Returns:
        The plan, and what could have left.

    Raises:
        NetworkError: The network cannot be followed, or the target cannot be reached.
    """
    refuse_compiled(model)
    if not is_permanent(model):
        model = permanent_copy(model)
    blocks: tuple[str, ...] = ()
    if options.depth:
        blocks = _blocks_of(model, example_input, options, start, seed)
        model = permanent_copy(model)
        apply_plan(model, Plan(blocks=blocks))
    plan, prunable = _plan(model, example_input, options, fraction, start, seed, curves, threads)
    return plan.model_copy(update={"blocks": blocks}), prunable


def _blocks_of(
    model: nn.Module,
    example_input: Example,
    options: recipe.Removal,
    start: Start | None,
    seed: int,
) -> tuple[str, ...]:
    """Blocks that leave, so that ``options.depth`` of those at the start are gone."""
    now = len(find_blocks(model, example_input))
    first = now if start is None else start.blocks
    count = blocks_to_go(first, options.depth) - (first - now)
    return plan_blocks(model, example_input, count, options.importance, seed).blocks


def _plan(
    model: nn.Module,
    example_input: Example,
    options: recipe.Removal,
    fraction: float,
    start: Start | None,
    seed: int,
    curves: Mapping[str, Curve] | None,
    threads: int | None,
) -> tuple[Plan, Prunable]:
    """Channels alone; see :func:`plan_channels`."""
    prunable = select_groups(model, example_input, options)
    scores = channel_importance(model, prunable, options.importance, seed)
    job = _Job(model, prunable, scores, options, start or Start(prunable, model), curves)
    if options.objective is None:
        return job.plan(job.widths(fraction)), prunable
    if fraction == 0:
        return Plan(), prunable
    if options.objective != "latency":
        return job.reach(fraction), prunable
    count = threads or environment.threads()
    target = 1 - fraction
    if start is not None:
        if not isinstance(prunable.example, Tensor):
            raise NetworkError("latency needs a network of one input")
        shape = tuple(prunable.example.shape[1:])
        clock = NetworkTimer(shape, options.precision, count)
        before, now = clock.time(clock.load(start.network), clock.load(model))
        target = min(1.0, target * before / now)
    plan = plan_latency(
        model, prunable, scores, job.plan, target, options.round_to, options.precision, count
    ).plan
    return plan, prunable


@dataclass(frozen=True, eq=False)
class _Job:
    """One network, what can leave it, and how that is chosen."""

    model: nn.Module
    prunable: Prunable
    scores: Mapping[str, Scores]
    options: recipe.Removal
    start: Start
    curves: Mapping[str, Curve] | None

    def plan(self, widths: Mapping[str, int]) -> Plan:
        """The plan that leaves each group as wide as asked; see :func:`realize_widths`."""
        return plan_widths(self.model, self.prunable, widths, self.scores, self.options.round_to)

    def widths(self, fraction: float) -> dict[str, int]:
        """Steps that stay of each group."""
        wide = self._by_scope(fraction)
        judged = {name for name, each in self.scores.items() if np.isfinite(each).any()}
        return {
            group.name: wide[group.name] if group.name in judged else group.steps
            for group in self.prunable.groups
        }

    def _by_scope(self, fraction: float) -> dict[str, int]:
        options, round_to = self.options, self.options.round_to
        groups, all_groups = self.prunable.groups, self.start.prunable.groups
        if options.scope == "global":
            total, left = (_channels(each) for each in (self.start.prunable, self.prunable))
            more = max(0.0, 1 - (1 - fraction) * total / left) if left else 0.0
            normalize = options.importance in _NORMS
            parts = global_fractions(self.prunable, self.scores, more, normalize)
            return {group.name: group.width(parts[group.name], round_to) for group in groups}
        parts = {group.name: fraction for group in all_groups}
        if options.scope == "sensitivity":
            parts = sensitivity_fractions(self.start.prunable, self.curves or {}, fraction)
        for pattern, own in options.fractions.items():
            for group in all_groups:
                if any(matches(member.layer, (pattern,)) for member in group.makers()):
                    parts[group.name] = own
        wide = {group.name: group.width(parts[group.name], round_to) for group in all_groups}
        return {group.name: min(group.steps, _same(wide, group)) for group in groups}

    def reach(self, fraction: float) -> Plan:
        """The plan of the smallest fraction of channels, to a 256th, that meets an objective."""
        objective = self.options.objective
        assert objective in ("macs", "parameters")
        costs = Costs(self.model, self.prunable, objective)
        full = costs.full
        if self.start.network is not self.model:
            full = Costs(self.start.network, self.start.prunable, objective).full
        most = (1 - fraction) * full * (1 + 1e-12)
        if costs.full <= most:
            return Plan()
        low, high = 0, 255
        while high - low > 1:
            middle = (low + high) // 2
            fits = costs.at(self.widths(middle / 256)) <= most
            low, high = (low, middle) if fits else (middle, high)
        for step in range(high, 256):
            plan = self.plan(self.widths(step / 256))
            if costs.of(plan) <= most:
                return plan
        raise NetworkError(
            "target cannot be reached",
            where=f"target = {1 - fraction:.3g} of {objective}",
            expected=f"at least {costs.of(plan) / full:.3f}",
            remedy="a smaller round_to reaches further",
        )


def plan_widths(
    model: nn.Module,
    prunable: Prunable,
    widths: Mapping[str, int],
    scores: Mapping[str, Scores],
    round_to: int,
) -> Plan:
    """The plan that leaves each group as wide as asked; see :func:`realize_widths`.

    Raises:
        NetworkError: The network does not work in these widths.
    """
    try:
        return realize_widths(model, prunable, widths, scores, round_to, allow_full=True)
    except WidthsRejected as why:
        raise NetworkError("cannot shrink the network", found=why) from why


def _same(wide: Mapping[str, int], group: Group) -> int:
    if group.name not in wide:
        raise NetworkError("a layer could not be pruned before", where=group.name)
    return wide[group.name]


def _channels(prunable: Prunable) -> int:
    return sum(channels_of(prunable, group.name) for group in prunable.groups)


def explain_shortfall(plan: Plan, prunable: Prunable, fraction: float) -> str | None:
    """Why a plan removes nothing, or nearly nothing, of what was asked; None where it does.

    Nearly nothing is less than a tenth of ``fraction`` of all channels that layers make.
    """
    keeps = plan.keeps()
    made = {axis: prunable.graph.sizes[axis] for axis in prunable.graph.sources}
    lost = sum(size - len(keeps[axis]) for axis, size in made.items() if axis in keeps)
    if plan.blocks or fraction == 0 or (lost and lost >= 0.1 * fraction * sum(made.values())):
        return None
    by: dict[str, list[str]] = {}
    for layer in prunable.protected:
        by.setdefault(layer.reason, []).append(layer.name)
    reasons = [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
        for reason, names in sorted(by.items(), key=lambda item: -len(item[1]))
    ]
    if prunable.groups:
        narrow = min(max(len(m.index) for m in group.makers()) for group in prunable.groups)
        reasons.append(
            f"{len(prunable.groups)} groups could shrink, the narrowest of {narrow} channels; "
            "a smaller round_to or a larger fraction removes some"
        )
    return f"{lost} of {sum(made.values())} channels leave; what stays: {' | '.join(reasons[:6])}"
