"""Turns the widths of groups into a verified plan.

The smaller network is built on the meta device in the target widths and traced. Each of its
channels is assigned to a channel of the large network that passes through the same operations. Thus
the plan is right also if a channel shuffle moves kept channels to other positions. Finally, every
pair of entries that depend on each other in the smaller network must depend on each other in the
large one; otherwise the plan is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from secateur.errors import NetworkError
from secateur.pruning.adapt import WidthsRejected, conv_groups, scales, settings
from secateur.pruning.channels import Group, Ints, Prunable, Scores
from secateur.pruning.plan import Plan, Reindex, Setting
from secateur.pruning.surgery import apply_plan
from secateur.pruning.tracing.channel_graph import INPUTS, Axis, ChannelGraph
from secateur.pruning.tracing.probe import weightless, with_values
from secateur.pruning.tracing.trace import follow_channels
from secateur.pruning.units import Units, units_of

_CACHED = 2
"""Smaller networks whose units are kept."""


class ChannelsDoNotFit(WidthsRejected):
    """The network runs, but its channels cannot all pass through the same operations as before.

    Attributes:
        groups: All groups without room for their channels; ``group`` is the first.
    """

    def __init__(self, why: str, groups: Sequence[str | None]) -> None:
        super().__init__(why, groups[0])
        self.groups = groups


def realize_widths(
    model: nn.Module,
    prunable: Prunable,
    widths: Mapping[str, int],
    scores: Mapping[str, Scores],
    round_to: int = 1,
    allow_full: bool = False,
) -> Plan:
    """Plan the removal for given widths of groups, keeping the units with the highest scores.

    A balanced group is widened by ``round_to``, repeatedly, while the network does not run in its
    width or its channels cannot be assigned.

    Args:
        model: Any network; not modified.
        prunable: Removable channels of the same network.
        widths: From group to its remaining steps, in [1, steps]; other groups keep their full
            width.
        scores: For each group in ``widths``, the importance of each unit, shape (units,).
        round_to: Widths are multiples of this.
        allow_full: Whether groups may keep their full width if no smaller width works.

    Raises:
        NetworkError: A width is 0 or more than the full width.
        WidthsRejected: The smaller network does not run in these widths.
    """
    wide = dict(widths)
    for name, width in wide.items():
        _check_width(prunable.group(name), width)
    large = units_of(prunable.graph)
    while True:
        try:
            return realize_exactly(model, prunable, large, wide, scores)
        except WidthsRejected as rejected:
            if rejected.group in wide:
                failing = [rejected.group]
            else:
                fails = partial(_fails_alone, model, prunable, large, scores)
                failing = [
                    name
                    for name in wide
                    if prunable.group(name).balanced and fails(name, wide[name])
                ]
            if not _widen(prunable, wide, failing, round_to, allow_full):
                raise


def _check_width(group: Group, width: int) -> None:
    if not 1 <= width <= group.steps:
        raise NetworkError(
            "nothing would be left of a layer" if width < 1 else "a layer cannot grow",
            where=group.name,
            expected=f"1 to {group.steps} left",
            found=width,
        )


def _widen(
    prunable: Prunable,
    wide: dict[str, int],
    failing: Sequence[str],
    round_to: int,
    allow_full: bool,
) -> bool:
    """Widen the failing groups in place, or all if only their combination fails.

    Returns:
        Whether there are other widths to try.
    """
    for name in failing:
        group = prunable.group(name)
        if wide[name] == group.steps:  # full width, and channels still cannot be assigned
            return False
        stride = group.stride(round_to)
        wide[name] = min(group.steps, (wide[name] // stride + 1) * stride)
        if not group.balanced or (wide[name] == group.steps and not allow_full):
            return False
    if not failing:
        if not allow_full or all(wide[name] == prunable.group(name).steps for name in wide):
            return False
        for name in wide:
            group = prunable.group(name)
            more = max(group.stride(round_to), group.steps // 8)
            wide[name] = min(group.steps, wide[name] + more)
    return True


def _fails_alone(
    model: nn.Module,
    prunable: Prunable,
    large: Units,
    scores: Mapping[str, Scores],
    name: str,
    width: int,
) -> bool:
    try:
        realize_exactly(model, prunable, large, {name: width}, scores)
    except WidthsRejected:
        return True
    return False


def realize_exactly(
    model: nn.Module,
    prunable: Prunable,
    large: Units,
    widths: Mapping[str, int],
    scores: Mapping[str, Scores],
) -> Plan:
    """As :func:`realize_widths`, for exactly these widths; ``large`` has the units of the graph.

    Raises:
        WidthsRejected: The smaller network does not run, or its channels cannot be assigned.
    """
    groups = [prunable.group(name) for name in widths]
    sizes = dict(prunable.graph.sizes)
    for group in groups:
        for member in group.members:
            removed = len(member.index) * (group.steps - widths[group.name]) // group.steps
            sizes[member.axis] -= removed
    numbers = settings(prunable.graph, large, groups, widths)
    numbers += conv_groups(model, prunable.graph, sizes)
    small = _small_units(model, prunable, sizes, numbers)
    _require_same(prunable.graph, small.graph, sizes)
    plan = _match(prunable, large, small, groups, scores)
    cut = {path for each in plan.cuts for path in each.paths}
    indices = tuple(
        Reindex(tensor=name, values=values)
        for name, values in small.graph.indices.items()
        if name in cut
    )
    return plan.model_copy(update={"settings": tuple(numbers), "indices": indices})


def _small_units(
    model: nn.Module, prunable: Prunable, sizes: Mapping[Axis, int], numbers: list[Setting]
) -> Units:
    """Units of the smaller network, cached: checking half the width and planning it are one run."""
    cached, key = prunable.graph.smaller, (tuple(sizes.values()), tuple(numbers))
    if key not in cached:
        small = _run_small(model, prunable, sizes, numbers)
        if prunable.values:  # the run depends on the weights
            return small
        if len(cached) == _CACHED:
            del cached[next(iter(cached))]
        cached[key] = small
    return cached[key]


def _run_small(
    model: nn.Module, prunable: Prunable, sizes: Mapping[Axis, int], numbers: list[Setting]
) -> Units:
    probe = with_values(model) if prunable.values else weightless(model)
    keeps = {axis: range(size) for axis, size in sizes.items()}
    cuts = Plan.of(keeps, prunable.graph.sizes).cuts
    try:
        apply_plan(probe, Plan(cuts=cuts, settings=tuple(numbers)))
        _rank_indices(probe, prunable.graph, {path for cut in cuts for path in cut.paths})
        graph = follow_channels(probe, prunable.example, prunable.graph)
        return Units(graph)
    except NetworkError as error:
        cause = f"{type(error.__cause__).__name__}: {error.__cause__}".splitlines()[0]
        where = None if error.where is None else str(error.where)
        raise WidthsRejected(f"smaller, it does not run ({cause})", where=where) from error


@torch.no_grad()
def _rank_indices(probe: nn.Module, large: ChannelGraph, cut: set[str]) -> None:
    """Rank the first entries of an index buffer to shorten it without gaps."""
    for name in large.indices:
        if name in cut:
            buffer = probe.get_buffer(name)
            _, ranks = buffer.unique(return_inverse=True)
            buffer.copy_(ranks)


def _require_same(large: ChannelGraph, small: ChannelGraph, sizes: Mapping[Axis, int]) -> None:
    if small.sizes != sizes:
        differing = next(
            axis for axis in {**sizes, **small.sizes} if small.sizes.get(axis) != sizes.get(axis)
        )
        raise WidthsRejected(f"smaller, {differing.tensor} does not have the width it should have")
    if small.outputs != large.outputs:
        raise WidthsRejected(f"smaller, it returns {small.outputs} instead of {large.outputs}")
    if small.scalars != large.scalars:
        pairs = zip(large.scalars, small.scalars, strict=False)
        for (name, before, where), (_, after, _) in pairs:
            if before != after:
                raise WidthsRejected(
                    f"smaller, {name} computes with {after:g} instead of {before:g}", where=where
                )
    kinds = ("scalars", "visits", "scales")
    if any(len(getattr(small, each)) != len(getattr(large, each)) for each in kinds):
        raise WidthsRejected("smaller, it runs other operations")


def _match(
    prunable: Prunable,
    large: Units,
    small: Units,
    groups: list[Group],
    scores: Mapping[str, Scores],
) -> Plan:
    """Assign each unit of the small network to one of the large network, and derive the plan."""
    score_of = np.full(large.number, np.inf)
    owner: dict[int, str] = {}
    for group in groups:
        for unit, component in enumerate(_components(prunable, large, group)):
            score_of[component] = scores[group.name][unit]
            owner[component] = group.name
    room, have = small.buckets, large.buckets
    stands_for = np.full(small.number, -1)
    misfits: dict[str | None, str] = {}
    for bucket, slots in room.items():
        candidates = have.get(bucket, [])
        group_name = next((owner[unit] for unit in candidates if unit in owner), None)
        if len(slots) > len(candidates) or (group_name is None and len(slots) < len(candidates)):
            axis = bucket[0][0][0]
            why = f"smaller, it has {len(slots)} places for {len(candidates)} channels"
            misfits.setdefault(group_name or _owner_of(groups, axis), f"{why} of {axis.tensor}")
            continue
        stands_for[slots] = _best(candidates, score_of, len(slots))
    if misfits:
        raise ChannelsDoNotFit(next(iter(misfits.values())), list(misfits))
    for bucket, candidates in have.items():
        if bucket not in room and any(unit not in owner for unit in candidates):
            raise WidthsRejected(
                f"smaller, it has no place for channels of {bucket[0][0][0].tensor}"
            )
    return _read_plan(prunable, large, small, stands_for)


def _components(prunable: Prunable, large: Units, group: Group) -> Ints:
    """Component of each unit of a group, shape (units,)."""
    components = np.empty(group.units, np.int64)
    for member in group.members:
        components[member.unit] = large.of[prunable.graph.offsets[member.axis] + member.index]
    return components


def _owner_of(groups: list[Group], axis: Axis) -> str | None:
    return next((g.name for g in groups for m in g.members if m.axis == axis), None)


def _best(candidates: list[int], score_of: Scores, count: int) -> list[int]:
    """The ``count`` candidates with the highest scores, the last of equal ones, in order."""
    ranked = np.argsort(score_of[candidates], kind="stable")[len(candidates) - count :]
    return [candidates[position] for position in sorted(ranked.tolist())]


def _places(large: Units, small: Units, stands_for: Ints) -> Ints:
    """Node of the large network for each node of the small one, shape (nodes,).

    A unit and its counterpart have equally many nodes on each axis, in the same order.
    """
    rank = {axis: number for number, axis in enumerate(large.axes)}
    ranks = np.array([rank[axis] for axis in small.axes], np.int64)
    small_order = np.lexsort((ranks[small.axis_of], small.of))
    large_order = np.lexsort((large.axis_of, large.of))
    units = small.of[small_order]
    within = np.arange(small.graph.count) - small.bounds[units]
    node_of = np.empty(small.graph.count, np.int64)
    node_of[small_order] = large_order[large.bounds[stands_for[units]] + within]
    return node_of


def _read_plan(prunable: Prunable, large: Units, small: Units, stands_for: Ints) -> Plan:
    node_of = _places(large, small, stands_for)
    edges = np.sort(node_of[small.graph.edges], axis=1)
    count = prunable.graph.count
    codes = np.sort(edges @ np.array([count, 1]))
    known = prunable.graph.edges @ np.array([count, 1])  # increasing
    if not np.array_equal(np.append(known, -1)[np.searchsorted(known, codes)], codes):
        raise WidthsRejected("smaller, it would join channels that the large network keeps apart")
    small_of = np.full(count, -1)
    small_of[node_of] = np.arange(small.graph.count)
    for small_nodes, large_nodes in zip(small.graph.visits, large.graph.visits, strict=True):
        kept = small_of[large_nodes]
        if not np.array_equal(np.sort(kept[kept >= 0]), small_nodes):
            raise WidthsRejected(
                "smaller, it would send channels another way than the large network"
            )
    keeps: dict[Axis, list[int]] = {}
    for axis, start in small.graph.offsets.items():
        nodes = node_of[start : start + small.graph.sizes[axis]]
        keeps[axis] = large.index_of[nodes].tolist()
    for axis, keep in keeps.items():
        if axis.axis == INPUTS and not _in_order(prunable.graph, small.graph, axis, keep):
            raise WidthsRejected(f"smaller, {axis.tensor} would read its inputs in another order")
    plan = Plan.of(keeps, prunable.graph.sizes)
    return plan.model_copy(update={"scales": scales(large, small, node_of)})


def _in_order(large: ChannelGraph, small: ChannelGraph, axis: Axis, keep: list[int]) -> bool:
    """Whether a grouped convolution reads the kept inputs of each group in their order."""
    groups, places = np.divmod(np.array(keep), large.blocks[axis])
    small_groups, small_places = np.divmod(np.arange(len(keep)), small.blocks[axis])
    if axis.tensor not in large.within:
        return bool((places == small_places).all())
    alike = places == places[: small.blocks[axis]][small_places]
    return bool((groups == small_groups).all() and alike.all())
