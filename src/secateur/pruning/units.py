"""Units: the sets of tensor entries that can only be removed together, and their groups."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from secateur.pruning.channels import Group, Ints, Member, Protected
from secateur.pruning.tracing.channel_graph import Axis, ChannelGraph, Nodes, known

_Bucket = tuple[tuple[tuple[Axis, int], ...], int, bool]
"""Axes of a unit, its operations, and whether it is protected; units with equal keys are
interchangeable."""


class Units:
    """The connected components of a graph: nodes that can only be removed together.

    Attributes:
        of: Component of each node, shape (nodes,).
        reasons: From component to the reason why it must be kept.
        tours: A hash for each component of the operation results that contain it.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        edges, count = graph.edges, graph.count
        ones = np.ones(len(edges), bool)
        adjacency = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(count, count))
        self.number, self.of = connected_components(adjacency, directed=False)
        self.axes = list(graph.offsets)
        starts = np.fromiter(graph.offsets.values(), np.int64, len(self.axes))
        self.axis_of = np.searchsorted(starts, np.arange(count), side="right") - 1
        self.index_of = np.arange(count) - starts[self.axis_of]
        self.by_unit = np.argsort(self.of, kind="stable")
        self.bounds = np.searchsorted(self.of[self.by_unit], np.arange(self.number + 1))
        self.reasons: dict[int, str] = {}
        for nodes, why in graph.protections:
            for unit in self.units_in(nodes).tolist():
                self.reasons.setdefault(unit, why)
        self.tours = self._tours()
        self.families = self._families()

    def copy(self) -> Units:
        """A copy to refuse groups in."""
        copied = copy.copy(self)
        copied.reasons = dict(self.reasons)
        return copied

    def nodes(self, unit: int) -> Nodes:
        """Nodes of a component, increasing."""
        return self.by_unit[self.bounds[unit] : self.bounds[unit + 1]]

    def units_in(self, nodes: Nodes) -> Ints:
        """The distinct components of some nodes, increasing."""
        return known(self.of[nodes])

    @cached_property
    def signatures(self) -> list[tuple[tuple[int, int], ...]]:
        """For each component, its axes and the number of entries on each."""
        every = max(1, len(self.axes))
        places, counts = np.unique(self.of * every + self.axis_of, return_counts=True)
        pairs = list(zip((places % every).tolist(), counts.tolist(), strict=True))
        bounds = np.searchsorted(places // every, np.arange(self.number + 1)).tolist()
        return [tuple(pairs[a:b]) for a, b in pairwise(bounds)]

    @cached_property
    def buckets(self) -> dict[_Bucket, list[int]]:
        """Interchangeable components, in the network's order."""
        places: dict[tuple[tuple[int, int], ...], tuple[tuple[Axis, int], ...]] = {}
        for own in self.signatures:
            if own not in places:
                places[own] = tuple(sorted((self.axes[axis], many) for axis, many in own))
        buckets: dict[_Bucket, list[int]] = {}
        firsts = self.by_unit[self.bounds[:-1]]
        tours = self.tours.tolist()
        for unit in np.argsort(firsts, kind="stable").tolist():
            key = (places[self.signatures[unit]], tours[unit], unit in self.reasons)
            buckets.setdefault(key, []).append(unit)
        return buckets

    def kind(self, unit: int) -> tuple[object, ...]:
        """A key shared by interchangeable components: their axes and operations."""
        return self.signatures[unit], int(self.tours[unit])

    def _tours(self) -> npt.NDArray[np.uint64]:
        """Hash of the operation results that contain each component: a sum of random numbers."""
        visits = self.graph.visits
        numbers = np.random.default_rng(0).integers(0, 2**64, len(visits), np.uint64)
        tours = np.zeros(self.number, np.uint64)
        components: dict[bytes, Ints] = {}
        for number, nodes in zip(numbers, visits, strict=True):
            key = nodes.tobytes()
            if key not in components:
                components[key] = self.units_in(nodes)
            tours[components[key]] += number
        return tours

    def makes(self, unit: int) -> bool:
        """Whether the component has channels produced by a layer."""
        return any(self.axes[axis] in self.graph.sources for axis, _ in self.signatures[unit])

    def _families(self) -> dict[int, int]:
        """From components that an operation uses by position to a number they share.

        If one of them must be kept, so must the others.
        """
        bound = [(self.units_in(nodes), what) for nodes, what in self.graph.couplings]
        for first, second, what in self.graph.ties:
            units = self.units_in(first)
            others = self.units_in(second)
            if not np.isin(others, units).all():
                bound.append((np.union1d(units, others), what))
        bound = [(members, what) for members, what in bound if members.size]
        if not bound:
            return {}
        every = np.concatenate([members for members, _ in bound])
        first = np.concatenate([np.full_like(members, members[0]) for members, _ in bound])
        shape = (self.number, self.number)
        adjacency = coo_array((np.ones(len(every), bool), (first, every)), shape=shape)
        _, family = connected_components(adjacency, directed=False)
        staying = set(family[list(self.reasons)].tolist())
        for members, what in bound:
            why = f"{what} counts them together with channels that must stay"
            for unit in members.tolist():
                if family[unit] in staying:
                    self.reasons.setdefault(unit, why)
        return dict(zip(every.tolist(), family[every].tolist(), strict=True))

    def groups(self) -> list[Group]:
        """Removable components grouped by their axes, in the network's order."""
        sets: dict[tuple[str, object], list[int]] = {}
        for unit in range(self.number):
            if self.makes(unit) and unit not in self.reasons:
                family = self.families.get(unit)
                key = ("one", self.kind(unit)) if family is None else ("even", family)
                sets.setdefault(key, []).append(unit)
        groups = []
        names: dict[str, int] = {}
        for (kind, _), members in sorted(sets.items(), key=lambda item: self._first(item[1])):
            group = self._group(members, kind == "even", names)
            if group.steps > 1:
                groups.append(group)
            else:
                mixing = [words for words in group.words if "mixes" in words or "groups" in words]
                why = "; ".join(mixing[:1] or group.words[:3])
                self.refuse(group, f"its channels all hang together: {why}")
        return groups

    def refuse(self, group: Group, why: str) -> None:
        """Protect all units of a group."""
        for member in group.members:
            start = self.graph.offsets[member.axis]
            for unit in np.unique(self.of[start + member.index]).tolist():
                self.reasons.setdefault(unit, why)
        self.__dict__.pop("buckets", None)  # they depend on the reasons

    def _first(self, members: Sequence[int]) -> int:
        return min(int(self.nodes(unit)[0]) for unit in members)

    def _group(self, components: list[int], even: bool, names: dict[str, int]) -> Group:
        components.sort(key=lambda unit: int(self.nodes(unit)[0]))
        nodes = np.concatenate([self.nodes(unit) for unit in components])
        unit = np.repeat(np.arange(len(components)), [len(self.nodes(each)) for each in components])
        order = np.argsort(nodes)  # axis by axis
        nodes, unit = nodes[order], unit[order]
        axes, starts = np.unique(self.axis_of[nodes], return_index=True)
        members = [
            Member(self.axes[axis], index, units, self._role(self.axes[axis]))
            for axis, index, units in zip(
                axes.tolist(),
                np.split(self.index_of[nodes], starts[1:]),
                np.split(unit, starts[1:]),
                strict=True,
            )
        ]
        steps = len(components)
        if even:
            steps = math.gcd(*(len(member.index) for member in members), *self._rows(components))
            if len({self.signatures[component] for component in components}) == 1:
                steps = math.gcd(steps, len(components))
        name = next(m for m in members if m.role == "makes").layer
        names[name] = names.get(name, 0) + 1
        name += f":{names[name]}" if names[name] > 1 else ""
        return Group(name, len(components), tuple(members), even, steps, self._words(components))

    def _rows(self, components: Sequence[int]) -> list[int]:
        """Lengths of the rows of components that must shrink equally."""
        inside = set(components)
        sets = (rows for rows in self.graph.rows if len(rows) > 1 and rows[0].size)
        return [len(row) for rows in sets if int(self.of[rows[0][0]]) in inside for row in rows]

    def _role(self, axis: Axis) -> str:
        if axis in self.graph.sources:
            return "makes"
        return "reads" if axis in self.graph.readers else "follows"

    def _words(self, components: Sequence[int]) -> tuple[str, ...]:
        lines, by_unit, bounds = self._mentions
        numbers = [by_unit[bounds[unit] : bounds[unit + 1]] for unit in components]
        return tuple(dict.fromkeys(lines[n] for n in np.unique(np.concatenate(numbers)).tolist()))

    @cached_property
    def _mentions(self) -> tuple[list[str], Ints, Ints]:
        """Descriptions of operations, their numbers sorted by unit, and each unit's bounds."""
        described = [(event.nodes, f"{event.where}: {event.what}") for event in self.graph.events]
        described += [
            (nodes, f"{what}: counts them by position") for nodes, what in self.graph.couplings
        ]
        units = [self.units_in(nodes) for nodes, _ in described]
        every = np.concatenate([np.empty(0, np.int64), *units])
        numbers = np.repeat(np.arange(len(described)), [len(each) for each in units])
        order = np.argsort(every, kind="stable")
        bounds = np.searchsorted(every[order], np.arange(self.number + 1))
        return [line for _, line in described], numbers[order], bounds


def units_of(graph: ChannelGraph) -> Units:
    """The units of a graph, cached; do not modify."""
    if graph.units is None:
        graph.units = Units(graph)
    return graph.units


def protected_layers(
    model: nn.Module, names: Mapping[str, str], units: Units, groups: Sequence[Group]
) -> list[Protected]:
    """Layers with channels that cannot be removed.

    ``names`` maps each name of a tensor to its first name.
    """
    free: dict[Axis, int] = {}
    for group in groups:
        for member in group.members:
            free[member.axis] = free.get(member.axis, 0) + len(member.index)
    reasons: dict[str, str] = {}
    for axis in units.graph.sources:
        size = units.graph.sizes[axis]
        if free.get(axis, 0) == size:
            continue
        start = units.graph.offsets[axis]
        kept = [units.reasons.get(unit) for unit in units.of[start : start + size].tolist()]
        why = next(reason for reason in kept if reason is not None)
        some = f"{size - free[axis]} of {size} channels: " if axis in free else ""
        reasons.setdefault(axis.tensor.rpartition(".")[0] or axis.tensor, some + why)
    makers = {axis.tensor for axis in units.graph.sources}
    for module_name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            weight = names.get(f"{module_name}.weight")
            if weight is None:
                reasons.setdefault(module_name, "its weights are computed")
            elif weight not in makers:
                reasons.setdefault(module_name, "the network does not call it as a layer")
    modules = (name for name, _ in model.named_modules() if name in reasons)
    ordered = dict.fromkeys((*modules, *reasons))
    return [Protected(name, reasons[name]) for name in ordered]
