"""One round of iterative pruning: what leaves a network that is smaller already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from secateur import recipe
from secateur.benchmarking.cost import macs, parameters
from secateur.benchmarking.network_timer import NetworkTimer
from secateur.errors import NetworkError
from secateur.pruning.allocation import Curve, channels_of, global_fractions, sensitivity_fractions
from secateur.pruning.channels import Group, Prunable
from secateur.pruning.find import find_prunable
from secateur.pruning.importance import channel_importance
from secateur.pruning.latency import plan_latency
from secateur.pruning.plan import Plan
from secateur.pruning.removal import plan_widths, reach


@dataclass(frozen=True, eq=False)
class Start:
    """The network before the first round, which all fractions refer to.

    Attributes:
        prunable: What could be taken out of it.
        network: Its architecture; weights do not matter.
    """

    prunable: Prunable
    network: nn.Module


def start_of(model: nn.Module, example_input: Tensor, linear: str) -> Start:
    """Look at a network before anything leaves it; ``linear`` as in :class:`recipe.Prune`."""
    prunable = structural(model, find_prunable(model, example_input), linear)
    return Start(prunable, model)


def structural(model: nn.Module, prunable: Prunable, linear: str) -> Prunable:
    """What goes as a whole: without hidden linear layers where those lose single weights."""
    if linear == "neurons":
        return prunable
    groups = tuple(group for group in prunable.groups if not only_linear(model, group))
    return replace(prunable, groups=groups)


def only_linear(model: nn.Module, group: Group) -> bool:
    """Whether all that makes a group's channels are linear layers."""
    return all(isinstance(model.get_submodule(m.module), nn.Linear) for m in group.makers())


def linear_layers(model: nn.Module) -> list[str]:
    """Names of linear layers, in the network's order."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]


def plan_round(
    model: nn.Module,
    example_input: Tensor,
    start: Start,
    config: recipe.Prune,
    fraction: float,
    seed: int,
    curves: Mapping[str, Curve] | None = None,
    threads: int = 1,
) -> Plan:
    """Plan what leaves ``model`` so that ``fraction`` of what was there at the start is gone.

    Args:
        model: What the rounds before left; for ``taylor``, with gradients.
        example_input: As for :func:`secateur.plan_removal`.
        start: Of the network before the first round.
        config: How channels are chosen.
        fraction: Of the channels, or with an objective of that cost, in [0, 1).
        seed: For random importance.
        curves: For ``sensitivity``: of the network before the first round.
        threads: For ``latency``: of the runtime.

    Raises:
        NetworkError: The network cannot be followed, or the target cannot be reached.
    """
    found = structural(model, find_prunable(model, example_input), config.linear)
    scores = channel_importance(model, found, config.importance, seed)

    def widths(fraction: float) -> dict[str, int]:
        if config.scope == "global":
            total = _channels(start.prunable)
            left = _channels(found)
            more = max(0.0, 1 - (1 - fraction) * total / left)
            ours = global_fractions(found, scores, more, config.importance in ("l1", "l2"))
            return {g.name: g.width(ours[g.name], config.round_to) for g in found.groups}
        ours = {group.name: fraction for group in start.prunable.groups}
        if config.scope == "sensitivity":
            ours = sensitivity_fractions(start.prunable, curves or {}, fraction)
        wide = {g.name: g.width(ours[g.name], config.round_to) for g in start.prunable.groups}
        return {g.name: min(g.steps, _same(wide, g)) for g in found.groups}

    def plan(fraction: float) -> Plan:
        return plan_widths(model, found, widths(fraction), scores, config.round_to)

    if config.objective is None:
        return plan(fraction)
    shape = tuple(example_input.shape[1:])
    if config.objective == "latency":
        by_widths = partial(plan_widths, model, found, scores=scores, round_to=config.round_to)
        clock = NetworkTimer(shape, config.precision, threads)
        then, now = clock.time(clock.load(start.network), clock.load(model))
        target = min(1.0, (1 - fraction) * then / now)
        return plan_latency(
            model, found, scores, by_widths, target, config.round_to, config.precision, threads
        ).plan
    cost = partial(macs, input_shape=shape) if config.objective == "macs" else parameters
    target = min(1.0, (1 - fraction) * cost(start.network) / cost(model))
    return reach(model, plan, config.objective, target, shape)


def _same(wide: Mapping[str, int], group: Group) -> int:
    if group.name not in wide:
        raise NetworkError("a layer could not be pruned before", where=group.name)
    return wide[group.name]


def _channels(prunable: Prunable) -> int:
    return sum(channels_of(prunable, group.name) for group in prunable.groups)
