"""Adapts a smaller network beyond narrower weights: attributes of modules, and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from secateur.pruning.channels import Group, Ints
from secateur.pruning.plan import Scale, Setting
from secateur.pruning.tracing.channel_graph import Axis, ChannelGraph, Home, Nodes, Width
from secateur.pruning.units import Units


class WidthsRejected(Exception):  # noqa: N818  a finding, not an error
    """The network does not run in the requested widths, or not as the large network does.

    Attributes:
        group: Group without room for its channels, if known.
        where: Module that failed to run or computes otherwise, if one does.
    """

    def __init__(self, why: str, group: str | None = None, where: str | None = None) -> None:
        super().__init__(why)
        self.group, self.where = group, where


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
    numbers: dict[Home, float] = {}
    every = sorted(graph.attributes.items(), key=lambda item: len(item[1][0].less))
    for home, uses in every:  # differences last: they need the numbers that are subtracted
        values = set()
        for use in uses:
            size = _size(use, large, ratio, rows)
            size += sum(each.factor * numbers.get(each.home, each.value) for each in use.less)
            values.add(round(size / use.factor, 6))
        (value, *others) = values
        if not others and value == int(value):
            numbers[home] = value
    return [
        Setting(module=home.module, attribute=home.attribute, index=home.position, value=int(value))
        for home, value in numbers.items()
        if value != _value(graph.attributes[home][0])
    ]


def _value(use: Width) -> float:
    """The attribute in the large network."""
    subtracted = sum(each.factor * each.value for each in use.less)
    return round((len(use.slices) + subtracted) / use.factor, 6)


def _size(
    use: Width, large: Units, ratio: npt.NDArray[np.float64], rows: Mapping[int, Nodes]
) -> float:
    """Size of a dimension in the smaller network."""
    units = {tuple(np.unique(large.of[nodes]).tolist()) for nodes in use.slices}
    if len(units) == 1 or _along_rows(use.slices, rows):
        return len(use.slices)
    return float(sum(_left(ratio[large.of[nodes]]) for nodes in use.slices))


def conv_groups(model: nn.Module, graph: ChannelGraph, sizes: Mapping[Axis, int]) -> list[Setting]:
    """Return the numbers of groups of convolutions, except depthwise ones, in the smaller network.

    Args:
        model: The large network.
        graph: Its graph.
        sizes: Size of each axis in the smaller network.
    """
    numbers = []
    for axis, width in graph.blocks.items():
        module, _, leaf = axis.tensor.rpartition(".")
        same = all(sizes[each] == graph.sizes[each] for each in (axis, Axis(axis.tensor, 0)))
        layer = model.get_submodule(module)
        known = leaf == "weight" and isinstance(layer, nn.modules.conv._ConvNd)
        if same or not known or is_depthwise(graph, axis):
            continue
        size = graph.sizes if axis.tensor in graph.within else sizes
        numbers.append(Setting(module=module, attribute="groups", value=size[axis] // width))
    return numbers


def is_depthwise(graph: ChannelGraph, axis: Axis) -> bool:
    """Whether a convolution, by its ``INPUTS`` axis, has one input and one output per group."""
    return graph.blocks[axis] == 1 and graph.sizes[axis] == graph.sizes[Axis(axis.tensor, 0)]


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
        if before / after < 0:
            raise WidthsRejected("smaller, it would scale channels by a negative number")
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
