"""Plans the removal of channels from a network, by the options of a recipe."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
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
from secateur.pruning.tracing.probe import Example
from secateur.pruning.tracing.refusals import refuse_unsuitable
from secateur.wording import counted

_NORMS = ("l1", "l2", "fpgm")
"""Criteria whose scores are comparable between layers only after division by the layer's mean."""


@dataclass(frozen=True, eq=False)
class Start:
    """The network before the first round; all fractions refer to it.

    Attributes:
        prunable: Its removable channels.
        network: Its architecture; weights do not matter.
        blocks: Its removable residual blocks, if blocks are removed.
    """

    prunable: Prunable
    network: nn.Module
    blocks: int = 0


def start_of(model: nn.Module, example_input: Example, options: recipe.Removal) -> Start:
    """Analyze a network before the first round."""
    blocks = len(find_blocks(model, example_input)) if options.depth else 0
    return Start(select_groups(model, example_input, options), model, blocks)


def select_groups(model: nn.Module, example_input: Example, options: recipe.Removal) -> Prunable:
    """Removable channels without those that the options keep."""
    heads = options.attention == "heads"
    prunable = find_prunable(model, example_input, heads=heads, grouped=options.grouped)
    for pattern in (*options.keep, *options.fractions):
        _require_layers(model, pattern)
    kept = {g.name for pattern in options.keep for g in groups_of(prunable, pattern)}
    groups = [group for group in prunable.groups if group.name not in kept]
    if options.linear == "weights":
        groups = [group for group in groups if not only_linear(model, group)]
    reasons = (Protected(g.name, "the options keep it") for g in prunable.groups if g.name in kept)
    protected = (*prunable.protected, *reasons)
    return replace(prunable, groups=tuple(groups), protected=protected)


def _require_layers(model: nn.Module, pattern: str) -> None:
    """Check that a pattern matches a module, and that this has parameters.

    Raises:
        NetworkError: It does not.
    """
    matched = [module for name, module in model.named_modules() if matches(name, (pattern,))]
    if not matched:
        raise NetworkError(
            "no module of that name",
            where=pattern,
            expected="a name of named_modules(), or a pattern such as 'head.*'",
        )
    if not any(True for module in matched for _ in module.parameters()):
        raise NetworkError(
            "module has no parameters",
            where=pattern,
            expected="a layer, or a module with layers",
            found=type(matched[0]).__name__,
            remedy="name the layer that makes its channels",
        )


def groups_of(prunable: Prunable, pattern: str) -> list[Group]:
    """Groups whose channels are made in the modules that a pattern matches.

    If they make none, as a norm, the groups whose channels they normalize or shift.
    """
    made = [g for g in prunable.groups if any(matches(m.layer, (pattern,)) for m in g.makers())]
    protected = any(matches(layer.name, (pattern,)) for layer in prunable.protected)
    if made or protected:
        return made
    return [
        group
        for group in prunable.groups
        if any(m.role == "follows" and matches(m.layer, (pattern,)) for m in group.members)
    ]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches a module or one of its parents."""
    parts = name.split(".")
    above = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns for each in above)


def only_linear(model: nn.Module, group: Group) -> bool:
    """Whether only linear layers produce a group's channels."""
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
    scores: Mapping[str, Scores] | None = None,
) -> tuple[Plan, Prunable]:
    """Plan a removal after which ``fraction`` of the starting network is gone.

    Args:
        model: The network after the preceding rounds; with gradients for ``taylor``; not modified.
        example_input: See :func:`secateur.plan_removal`.
        options: Options of the choice of channels.
        fraction: Fraction of the channels, or of the objective's cost, in [0, 1).
        start: The network before the first round; by default this one.
        seed: Seed of random importance.
        curves: For ``sensitivity``: from group to (fraction, loss) of the starting network.
        threads: For ``latency``: threads of the runtime; by default those of torch.
        scores: From group to scores of its units, used instead of ``options.importance``; see
            :func:`secateur.pruning.importance.channel_importance`.

    Returns:
        The plan, and the removable channels.

    Raises:
        NetworkError: The network cannot be traced, or the target cannot be reached.
    """
    refuse_unsuitable(model)
    if not is_permanent(model):
        model = permanent_copy(model)
    blocks = Plan()
    if options.depth:
        blocks = _blocks_of(model, example_input, options, start, seed)
        model = permanent_copy(model)
        apply_plan(model, blocks)
    plan, prunable = _plan(
        model, example_input, options, fraction, start, seed, curves, threads, scores
    )
    update = {"blocks": blocks.blocks, "shortcuts": blocks.shortcuts}
    return plan.model_copy(update=update), prunable


def _blocks_of(
    model: nn.Module,
    example_input: Example,
    options: recipe.Removal,
    start: Start | None,
    seed: int,
) -> Plan:
    """Plan blocks to remove, until ``options.depth`` of the starting ones are gone."""
    now = len(find_blocks(model, example_input))
    first = now if start is None else start.blocks
    count = blocks_to_go(first, options.depth) - (first - now)
    return plan_blocks(model, example_input, count, options.importance, seed)


def _plan(
    model: nn.Module,
    example_input: Example,
    options: recipe.Removal,
    fraction: float,
    start: Start | None,
    seed: int,
    curves: Mapping[str, Curve] | None,
    threads: int | None,
    scores: Mapping[str, Scores] | None,
) -> tuple[Plan, Prunable]:
    """Plan channels only; see :func:`plan_channels`."""
    prunable = select_groups(model, example_input, options)
    scores = scores or channel_importance(model, prunable, options.importance, seed)
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
        timer = NetworkTimer(shape, options.precision, count)
        before, now = timer.time(timer.load(start.network), timer.load(model))
        target = min(1.0, target * before / now)
    plan = plan_latency(
        model, prunable, scores, job.plan, target, options.round_to, options.precision, count
    ).plan
    return plan, prunable


@dataclass(frozen=True, eq=False)
class _Job:
    """A network, its removable channels, and how they are chosen."""

    model: nn.Module
    prunable: Prunable
    scores: Mapping[str, Scores]
    options: recipe.Removal
    start: Start
    curves: Mapping[str, Curve] | None

    def plan(self, widths: Mapping[str, int]) -> Plan:
        """The plan for given widths; see :func:`realize_widths`."""
        return plan_widths(self.model, self.prunable, widths, self.scores, self.options.round_to)

    def widths(self, fraction: float) -> dict[str, int]:
        """Remaining steps of each group."""
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
            wide = {group.name: group.width(parts[group.name], round_to) for group in groups}
        else:
            parts = {group.name: fraction for group in all_groups}
            if options.scope == "sensitivity":
                parts = sensitivity_fractions(self.start.prunable, self.curves or {}, fraction)
            wide = {group.name: group.width(parts[group.name], round_to) for group in all_groups}
        for pattern, own in options.fractions.items():
            for group in groups_of(self.start.prunable, pattern):
                wide[group.name] = group.width(own, round_to)
        return {group.name: min(group.steps, _same(wide, group)) for group in groups}

    def reach(self, fraction: float) -> Plan:
        """The plan with the smallest fraction of channels, in 256ths, that meets an objective."""
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
    """The plan for given widths; see :func:`realize_widths`.

    Raises:
        NetworkError: The network does not run in these widths.
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


def explain_shortfall(
    plan: Plan, prunable: Prunable, fraction: float, sparse: Collection[str] = ()
) -> str | None:
    """Why a plan removes nothing or almost nothing; None if it removes enough.

    Almost nothing is less than a tenth of ``fraction`` of all layer outputs, except those of
    ``sparse``, layers that lose individual weights.
    """
    keeps = plan.keeps()
    produced = {
        axis: prunable.graph.sizes[axis]
        for axis in prunable.graph.sources
        if axis.tensor.rpartition(".")[0] not in sparse
    }
    removed = sum(size - len(keeps[axis]) for axis, size in produced.items() if axis in keeps)
    enough = removed and removed >= 0.1 * fraction * sum(produced.values())
    if plan.blocks or plan.shortcuts or fraction == 0 or enough:
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
            f"{counted(len(prunable.groups), 'group')} could shrink, the narrowest of "
            f"{counted(narrow, 'channel')}; "
            "a smaller round_to or a larger fraction removes some"
        )
    count = f"{removed} of {sum(produced.values())} channels"
    return f"{count} leave; what stays: {' | '.join(reasons[:6])}"
