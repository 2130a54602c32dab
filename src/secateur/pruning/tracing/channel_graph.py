"""The dependency graph of channels that one run of the network gives.

A *node* is one index along one axis of one tensor, for example output 5 of ``conv1.weight``. Nodes
are numbered; activations carry those numbers. Two nodes that can only be removed together are
joined by an *edge*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Nodes = npt.NDArray[np.int64]

FIXED = -1
"""Label of elements that no layer produces: pixels of the image, constants."""

ZERO = -2
"""Label of zeros that may become part of any channel: results of ``zeros_like``."""

_FEW = 2048
"""Number of labels up to which sorting is fast."""

INPUTS = -1
"""Virtual axis of a grouped convolution's inputs over all groups, which its weight lacks."""


class Axis(NamedTuple):
    """One axis of one tensor.

    Attributes:
        tensor: Name of a parameter or buffer.
        axis: Its dimension, or ``INPUTS``.
    """

    tensor: str
    axis: int


class Event(NamedTuple):
    """The effect of an operation on channels, for explanations.

    Attributes:
        where: Module of the operation.
        what: Effect, for example ``normalizes each of them``.
        nodes: The channels.
    """

    where: str
    what: str
    nodes: Nodes


class Home(NamedTuple):
    """An integer attribute of a module, or an item of a list or tuple of integers."""

    module: str
    attribute: str
    position: int | None = None

    def __str__(self) -> str:
        """Return it as in code."""
        name = f"{self.module}.{self.attribute}" if self.module else self.attribute
        return name if self.position is None else f"{name}[{self.position}]"


class Multiple(NamedTuple):
    """An attribute times a factor, and the attribute's value in the large network."""

    home: Home
    factor: float
    value: int


class Width(NamedTuple):
    """One use of a module attribute as the size of a dimension of channels.

    Attributes:
        factor: Size of the dimension as a multiple of the attribute.
        less: Multiples of other attributes that are subtracted.
        slices: The channels at each position along the dimension.
    """

    factor: float
    less: tuple[Multiple, ...]
    slices: list[Nodes]


@dataclass
class ChannelGraph:
    """All dependencies observed in one run.

    Attributes:
        offsets: First node of each axis.
        sizes: Nodes of each axis.
        blocks: Inputs of one group, for each ``INPUTS`` axis.
        sources: Axes that produce channels: outputs of convolutions and linear layers.
        readers: Axes that read channels: their inputs.
        events: Effects of operations, for explanations.
        protections: Protected nodes with reasons.
        couplings: Nodes that an operation splits or reorders by position, with the operation.
        ties: Pairs of sets of nodes that can only shrink alike, with the operation.
        gated: Nodes whose channels are multiplied or shifted by other tensors.
        scalars: All numeric arguments of operations, except widths, in order, with the operation
            and its module.
        scales: Numbers that directly multiply the output channels of a layer, with the channels; if
            a number depends on a width, the layer's weights are scaled.
        uses: Channels that each operation reads directly from a layer.
        weight_uses: One-dimensional weights, once for each operation that reads them.
        biases: Pairs of channels and the bias entries added to them.
        rows: Sets of channels that shrink equally, such as the heads of an attention.
        attributes: Widths held by module attributes.
        indices: Integer buffers that reorder channels, with their values.
        outputs: Shape and dtype of all outputs of the network.
        visits: For each computed result, in order, its nodes.
        unfollowed: Operations without a rule, as ``name at module``.
        grouped: Weights of norms in several groups.
        heads: Whether attentions lose entire heads, instead of channels within each.
        within: Weights of grouped convolutions that lose the same channels of each group, instead
            of entire groups.
        units: Cached components of the graph.
        smaller: Cached units of smaller networks, by sizes and settings.
        trains: Whether the network runs in training mode too, and otherwise than in inference.
        count: Number of nodes.
    """

    offsets: dict[Axis, int] = field(default_factory=dict)
    sizes: dict[Axis, int] = field(default_factory=dict)
    blocks: dict[Axis, int] = field(default_factory=dict)
    sources: dict[Axis, None] = field(default_factory=dict)
    readers: dict[Axis, None] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    protections: list[tuple[Nodes, str]] = field(default_factory=list)
    couplings: list[tuple[Nodes, str]] = field(default_factory=list)
    ties: list[tuple[Nodes, Nodes, str]] = field(default_factory=list)
    gated: list[Nodes] = field(default_factory=list)
    scalars: list[tuple[str, float, str]] = field(default_factory=list)
    scales: list[tuple[float, Nodes]] = field(default_factory=list)
    uses: list[Nodes] = field(default_factory=list)
    weight_uses: list[Axis] = field(default_factory=list)
    biases: list[tuple[Nodes, Nodes]] = field(default_factory=list)
    rows: list[list[Nodes]] = field(default_factory=list)
    attributes: dict[Home, list[Width]] = field(default_factory=dict)
    indices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    visits: list[Nodes] = field(default_factory=list)
    unfollowed: dict[str, None] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    heads: bool = False
    within: frozenset[str] = frozenset()
    trains: bool = False
    units: Any = None
    smaller: dict[Any, Any] = field(default_factory=dict)
    _edges: list[Nodes] = field(default_factory=list)
    count: int = 0

    def nodes(self, tensor: str, axis: int, size: int) -> Nodes:
        """Nodes of one axis, numbered on first use."""
        key = Axis(tensor, axis)
        if key not in self.offsets:
            self.offsets[key], self.sizes[key] = self.count, size
            self.count += size
        assert self.sizes[key] == size, key
        start = self.offsets[key]
        return np.arange(start, start + size)

    def join(self, first: Nodes, second: Nodes, why: str) -> None:
        """Join pairs of nodes that can only be removed together; FIXED protects its partner."""
        first, second = np.broadcast_arrays(first, second)
        first, second = first.ravel(), second.ravel()
        free = (first >= 0) & (second >= 0)
        apart = free & (first != second)
        if apart.any():
            joined = np.stack([first[apart], second[apart]], axis=1)
            self._edges.append(joined if len(joined) <= _FEW else _distinct_pairs(joined))
        if not free.all():
            fixed = ~free & (first != ZERO) & (second != ZERO)
            self.protect(np.concatenate([first[fixed], second[fixed]]), why)

    def protect(self, nodes: Nodes, why: str) -> None:
        """Protect nodes."""
        distinct = known(nodes)
        if distinct.size:
            self.protections.append((distinct, why))

    def tell(self, where: str, what: str, nodes: Nodes) -> None:
        """Record the effect of an operation on nodes."""
        distinct = known(nodes)
        if distinct.size:
            self.events.append(Event(where, what, distinct))

    def shrink_alike(self, rows: Sequence[Nodes], what: str) -> None:
        """Require that sets of nodes, such as the channels of each head, shrink equally."""
        sets = [known(row) for row in rows]
        self.rows.append(sets)
        self.visits += sets
        self.couple(np.concatenate(sets), what)

    def couple(self, nodes: Nodes, what: str) -> None:
        """Record that an operation uses nodes by position."""
        self.couplings.append((known(nodes), what))
        if (nodes == FIXED).any():
            self.protect(nodes, f"{what} counts them together with what no channel makes")

    def tie(self, first: Nodes, second: Nodes, what: str) -> None:
        """Record that the size of ``second`` is computed from that of ``first``."""
        if not np.isin(second, first).all():
            self.ties.append((first, known(second), what))

    def copy(self) -> ChannelGraph:
        """A copy that a second run can extend; arrays, which are never modified, are shared."""
        copied = replace(self, attributes={k: list(v) for k, v in self.attributes.items()})
        for part in fields(self):
            value = getattr(copied, part.name)
            if part.name != "attributes" and isinstance(value, (dict, list, set)):
                setattr(copied, part.name, value.copy())
        return copied

    def repeats(self, before: ChannelGraph) -> bool:
        """Whether a run after ``before``, of which this is a copy, did just the same."""
        if len(self.edges) != len(before.edges) or len(self.outputs) != 2 * len(before.outputs):
            return False
        for name in _RECORDED:
            both, first = getattr(self, name), getattr(before, name)
            if isinstance(both, list):
                if not _alike(first, both[len(first) :]):
                    return False
            elif name != "attributes" and both.keys() != first.keys():
                return False
        uses = self.attributes.items()
        return all(_alike(each[: len(each) // 2], each[len(each) // 2 :]) for _, each in uses)

    @property
    def edges(self) -> Nodes:
        """Distinct sorted pairs, shape (pairs, 2)."""
        if not self._edges:
            return np.empty((0, 2), np.int64)
        if len(self._edges) > 1 or len(self._edges[0]) <= _FEW:
            self._edges = [_distinct_pairs(np.concatenate(self._edges))]
        return self._edges[0]


_RECORDED = (
    *("offsets", "blocks", "sources", "readers", "indices", "unfollowed", "attributes"),
    *("protections", "couplings", "ties", "gated", "scalars", "scales", "uses", "weight_uses"),
    *("biases", "rows", "visits"),
)
"""What a run adds, except explanations."""


def _alike(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_alike, first, second))
    return bool(first == second)


def _distinct_pairs(pairs: Nodes) -> Nodes:
    """Distinct sorted pairs, with the smaller node first."""
    low, high = np.minimum(*pairs.T), np.maximum(*pairs.T)
    base = int(high.max()) + 1
    codes = _distinct(low * base + high)
    return np.stack([codes // base, codes % base], axis=1)


def known(nodes: Nodes) -> Nodes:
    """The distinct nodes among labels, without FIXED, increasing."""
    flat = nodes.ravel()
    if flat.size <= _FEW:
        distinct = _distinct(flat)
        return distinct[distinct >= 0]
    present = np.zeros(max(int(flat.max()), 0) + 1, bool)  # faster than sorting
    present[flat[flat >= 0]] = True
    return np.flatnonzero(present)


def _distinct(values: Nodes) -> Nodes:
    """As ``np.unique``, which hashes and is slower for small arrays."""
    ordered = np.sort(values)
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]
