"""Adapts a smaller network beyond narrower weights: attributes of modules, and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from secateur.pruning.channels import Group, Ints, Units
from secateur.pruning.plan import Scale, Setting
from secateur.pruning.tracing.channel_graph import Axis, ChannelGraph, Nodes


class WidthsRejected(Exception):  # noqa: N818  a finding, not an error
    """The network does not run in the requested widths, or not as the large network does."""

    def __init__(self, why: str, group: str | None = None) -> None:
        super().__init__(why)
        self.group = group


def settings(
    graph: ChannelGraph, large: Units, groups: Sequence[Group], widths: Mapping[str, int]
) -> list[Setting]:
    """Return new values for module attributes that hold the size of a dimension.

    Dimensions along rows that shrink equally, such as the heads of an attention, keep their size.

    Args:
        graph: Graph of the large network.
        large: Units of the large network.
        groups: Groups that shrink.
        widths: Remaining steps of each.
    """
    if not graph.attributes:
        return []
    ratio = np.ones(large.number)
    for group in groups:
        for member in group.members:
            components = large.of[graph.offsets[member.axis] + member.index]
            ratio[components] = widths[group.name] / group.steps
    rows = {int(row[0]): row for each in graph.rows if len(each) > 1 for row in each if len(row)}
    numbers = []
    for (module, attribute), uses in graph.attributes.items():
        values = set()
        for use in uses:
            size = float(len(use.slices))
            units = {tuple(np.unique(large.of[nodes]).tolist()) for nodes in use.slices}
            if len(units) > 1 and not _along_rows(use.slices, rows):
                left = [_left(ratio[large.of[nodes]]) for nodes in use.slices]
                size = float(sum(left))
            values.add(round(size / use.factor, 6))
        before = len(uses[0].slices) / uses[0].factor
        (value, *others) = values
        if not others and value != before and value == int(value):
            numbers.append(Setting(module=module, attribute=attribute, value=int(value)))
    return numbers


def _left(ratios: npt.NDArray[np.float64]) -> float:
    """Fraction of a position that remains."""
    return float(ratios[0]) if len(ratios) else 1.0


def _along_rows(slices: Sequence[Nodes], rows: Mapping[int, Nodes]) -> bool:
    """Whether each position holds an entire row, so that no position can be removed."""
    for nodes in slices:
        firsts = [rows[node] for node in nodes.tolist() if node in rows]
        if not any(np.isin(row, nodes).all() for row in firsts):
            return False
    return True


def scales(large: Units, small: Units, node_of: Ints) -> tuple[Scale, ...]:
    """Return scales of weights that compensate factors which depend on a width.

    Args:
        large: Units of the large network.
        small: Units of the small one.
        node_of: From node of the small network to the corresponding node of the large one.

    Raises:
        WidthsRejected: The channels have other readers too, or the factors contradict each other.
    """
    graph = large.graph
    factors: dict[int, float] = {}
    for (before, nodes), (after, small_nodes) in zip(graph.scales, small.graph.scales, strict=True):
        if abs(before / after - 1) < 1e-12:
            continue
        if not np.isin(node_of[small_nodes], nodes).all():
            raise WidthsRejected("smaller, it would scale other channels than the large network")
        for node in nodes.tolist():
            if abs(factors.setdefault(node, before / after) / (before / after) - 1) > 1e-12:
                raise WidthsRejected("smaller, it would scale channels in two ways")
    if not factors:
        return ()
    _require_sole_use(graph, factors)
    for channels, added in graph.biases:
        scaled = [
            (m, a) for m, a in zip(channels.tolist(), added.tolist(), strict=True) if m in factors
        ]
        factors |= {a: factors[m] for m, a in scaled}
    by: dict[tuple[Axis, float], list[int]] = {}
    for node, factor in sorted(factors.items()):
        axis = large.axes[int(large.axis_of[node])]
        by.setdefault((axis, factor), []).append(int(large.index_of[node]))
    return tuple(
        Scale(tensor=axis.tensor, axis=axis.axis, inputs=tuple(entries), factor=factor)
        for (axis, factor), entries in by.items()
    )


def _require_sole_use(graph: ChannelGraph, factors: Mapping[int, float]) -> None:
    """Check that all readers of a scaled channel apply the factor."""
    count = np.zeros(graph.count, np.int64)
    for nodes in graph.uses:
        count[nodes] += 1
    for axis in graph.weight_uses:
        if axis in graph.offsets:
            start = graph.offsets[axis]
            count[start : start + graph.sizes[axis]] += 1
    for _, nodes in graph.scales:
        count[nodes] -= 1
    if count[list(factors)].any():
        raise WidthsRejected("smaller, it would scale channels that are read elsewhere too")
