"""From how wide each group shall be to a plan that is known to be right.

The smaller network itself is asked: it is built without data in the widths to be, and run. Its own
channels then say which routes it has room for, and each is given to a channel of the large network
that takes the same route. So a channel shuffle may put kept channels in another place than before,
and the plan follows. Last, every pair of entries that meet in the smaller network must have met in
the large one; a plan of which that is not true is never returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from torch import nn

from secateur.errors import NetworkError
from secateur.pruning.channels import Group, Ints, Prunable, Scores, Units
from secateur.pruning.plan import Plan
from secateur.pruning.surgery import carry_out
from secateur.pruning.tracing.channel_graph import INPUTS, Axis, Wiring
from secateur.pruning.tracing.trace import follow_channels, weightless

_Bucket = tuple[tuple[tuple[Axis, int], ...], int, bool]
"""Where a unit lies, its way, whether it must stay: those alike can stand in for one another."""


class Unsuited(Exception):  # noqa: N818  a finding, not an error
    """The network does not work, or not as the large one does, in the widths asked for."""

    def __init__(self, why: str, group: str | None = None) -> None:
        super().__init__(why)
        self.group = group


class NoRoom(Unsuited):
    """The network works, but its channels cannot all go the ways they went before."""


def arrange(
    model: nn.Module,
    prunable: Prunable,
    widths: Mapping[str, int],
    scores: Mapping[str, Scores],
    round_to: int = 1,
    whole: bool = False,
) -> Plan:
    """Plan the removal that leaves each group as wide as asked, keeping what scores highest.

    A group whose positions count becomes wider by ``round_to``, and again, where the network does
    not run in its width or has no room for the routes of its channels.

    Args:
        model: Left as it is.
        prunable: Of the same network.
        widths: Group to the steps that stay, in [1, steps]; groups left out stay whole.
        scores: For each group named in ``widths``, the importance of each unit, shape (units,).
        round_to: What widths are multiples of.
        whole: Whether groups may stay whole where no smaller widths work.

    Raises:
        NetworkError: A width would empty a layer or is more than there is.
        Unsuited: The smaller network does not work.
    """
    wide = dict(widths)
    for name, width in wide.items():
        group = prunable.group(name)
        if not 1 <= width <= group.steps:
            raise NetworkError(
                "nothing would be left of a layer" if width < 1 else "a layer cannot grow",
                where=name,
                expected=f"1 to {group.steps} left",
                found=width,
            )
    large = Units(prunable.wiring)
    while True:
        try:
            return arrange_exactly(model, prunable, large, wide, scores)
        except Unsuited as finding:
            stuck = [finding.group] if finding.group in wide else None
            balanced = [name for name in wide if prunable.group(name).balanced]
            if stuck is None:
                alone = partial(_fails_alone, model, prunable, large, scores)
                stuck = [name for name in balanced if alone(name, wide[name])]
            for name in stuck:
                group = prunable.group(name)
                if wide[name] == group.steps:  # it is whole, and still there is no room
                    raise
                stride = group.stride(round_to)
                wide[name] = min(group.steps, (wide[name] // stride + 1) * stride)
                if name not in balanced or (wide[name] == group.steps and not whole):
                    raise
            if not stuck:
                if not whole or all(wide[name] == prunable.group(name).steps for name in wide):
                    raise
                # It is the widths together: an eighth more of every group, until it works.
                for name in wide:
                    group = prunable.group(name)
                    more = max(group.stride(round_to), group.steps // 8)
                    wide[name] = min(group.steps, wide[name] + more)


def _fails_alone(
    model: nn.Module,
    prunable: Prunable,
    large: Units,
    scores: Mapping[str, Scores],
    name: str,
    width: int,
) -> bool:
    try:
        arrange_exactly(model, prunable, large, {name: width}, scores)
    except Unsuited:
        return True
    return False


def arrange_exactly(
    model: nn.Module,
    prunable: Prunable,
    large: Units,
    widths: Mapping[str, int],
    scores: Mapping[str, Scores],
) -> Plan:
    """As :func:`arrange`, in just these widths; ``large`` is made of the prunable's wiring.

    Raises:
        Unsuited: The smaller network does not work, or has no room for the channels' ways.
    """
    groups = [prunable.group(name) for name in widths]
    sizes = dict(prunable.wiring.sizes)
    for group in groups:
        for member in group.members:
            lost = len(member.index) * (group.steps - widths[group.name]) // group.steps
            sizes[member.axis] -= lost
    small = _run_small(model, prunable, sizes)
    _require_same(prunable.wiring, small.wiring, sizes)
    return _match(prunable, large, small, groups, scores)


def _run_small(model: nn.Module, prunable: Prunable, sizes: Mapping[Axis, int]) -> Units:
    probe = weightless(model)
    keeps = {axis: range(size) for axis, size in sizes.items()}
    try:
        carry_out(probe, Plan.of(keeps, prunable.wiring.sizes).cuts)
        return Units(follow_channels(probe, prunable.example, prunable.wiring))
    except NetworkError as error:
        cause = f"{type(error.__cause__).__name__}: {error.__cause__}".splitlines()[0]
        raise Unsuited(f"smaller, it does not run ({cause})") from error


def _require_same(large: Wiring, small: Wiring, sizes: Mapping[Axis, int]) -> None:
    if small.sizes != sizes:
        differing = next(
            axis for axis in {**sizes, **small.sizes} if small.sizes.get(axis) != sizes.get(axis)
        )
        raise Unsuited(f"smaller, {differing.tensor} does not have the width it should have")
    if small.scalars != large.scalars:
        for (name, before), (_, after) in zip(large.scalars, small.scalars, strict=False):
            if before != after:
                raise Unsuited(f"smaller, {name} computes with {after:g} instead of {before:g}")
    if len(small.scalars) != len(large.scalars) or len(small.visits) != len(large.visits):
        raise Unsuited("smaller, it runs other operations")


def _buckets(units: Units) -> dict[_Bucket, list[int]]:
    """Units that can stand in for one another, in the order of the network."""
    found: dict[_Bucket, list[int]] = {}
    firsts = units.by_unit[units.bounds[:-1]]
    for unit in np.argsort(firsts, kind="stable").tolist():
        places = tuple((units.axes[axis], many) for axis, many in units.signatures[unit])
        key = (tuple(sorted(places)), int(units.tours[unit]), unit in units.reasons)
        found.setdefault(key, []).append(unit)
    return found


def _match(
    prunable: Prunable,
    large: Units,
    small: Units,
    groups: list[Group],
    scores: Mapping[str, Scores],
) -> Plan:
    """Give each unit of the small network one of the large, and read the plan off the pairs."""
    score_of = np.full(large.number, np.inf)
    owner: dict[int, str] = {}
    for group in groups:
        for unit, component in enumerate(_components(prunable, large, group)):
            score_of[component] = scores[group.name][unit]
            owner[component] = group.name
    room = _buckets(small)
    have = _buckets(large)
    stands_for = np.full(small.number, -1)
    for bucket, slots in room.items():
        candidates = have.get(bucket, [])
        group_name = next((owner[unit] for unit in candidates if unit in owner), None)
        if len(slots) > len(candidates) or (group_name is None and len(slots) < len(candidates)):
            axis = bucket[0][0][0]
            why = f"smaller, it has {len(slots)} places for {len(candidates)} channels"
            raise NoRoom(f"{why} of {axis.tensor}", group_name or _owner_of(groups, axis))
        stands_for[slots] = _best(candidates, score_of, len(slots))
    for bucket, candidates in have.items():
        if bucket not in room and any(unit not in owner for unit in candidates):
            raise Unsuited(f"smaller, it has no place for channels of {bucket[0][0][0].tensor}")
    return _read_plan(prunable, large, small, stands_for)


def _components(prunable: Prunable, large: Units, group: Group) -> Ints:
    """Component of each unit of a group, shape (units,)."""
    found = np.empty(group.units, np.int64)
    for member in group.members:
        found[member.unit] = large.of[prunable.wiring.offsets[member.axis] + member.index]
    return found


def _owner_of(groups: list[Group], axis: Axis) -> str | None:
    return next((g.name for g in groups for m in g.members if m.axis == axis), None)


def _best(candidates: list[int], score_of: Scores, count: int) -> list[int]:
    """The ``count`` candidates that score highest, of equals the last, in their order."""
    ranked = np.argsort(score_of[candidates], kind="stable")[len(candidates) - count :]
    return [candidates[position] for position in sorted(ranked.tolist())]


def _read_plan(prunable: Prunable, large: Units, small: Units, stands_for: Ints) -> Plan:
    node_of = np.full(small.wiring.count, -1)
    for unit in range(small.number):
        ours, theirs = small.nodes(unit), large.nodes(int(stands_for[unit]))
        places = {large.axes[axis]: theirs[large.axis_of[theirs] == axis]
                  for axis in np.unique(large.axis_of[theirs]).tolist()}  # fmt: skip
        for axis in np.unique(small.axis_of[ours]).tolist():
            node_of[ours[small.axis_of[ours] == axis]] = places[small.axes[axis]]
    met = np.sort(node_of[small.wiring.edges], axis=1)
    count = prunable.wiring.count
    known = prunable.wiring.edges @ np.array([count, 1])
    if not np.isin(met @ np.array([count, 1]), known).all():
        raise Unsuited("smaller, it would join channels that the large network keeps apart")
    for ours, theirs in zip(small.wiring.visits, large.wiring.visits, strict=True):
        here = np.zeros(count, bool)
        here[theirs] = True
        if not np.array_equal(np.flatnonzero(here[node_of]), ours):
            raise Unsuited("smaller, it would send channels another way than the large network")
    keeps: dict[Axis, list[int]] = {}
    for axis, start in small.wiring.offsets.items():
        nodes = node_of[start : start + small.wiring.sizes[axis]]
        keeps[axis] = large.index_of[nodes].tolist()
        if axis.axis == INPUTS:
            width = prunable.wiring.blocks[axis]
            local = np.array(keeps[axis]) % width
            if not np.array_equal(local, np.arange(len(local)) % width):
                raise Unsuited(f"smaller, {axis.tensor} would read its inputs in another order")
    return Plan.of(keeps, prunable.wiring.sizes)
