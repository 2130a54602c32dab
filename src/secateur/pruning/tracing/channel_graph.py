"""What a run of the network says about its channels: which entries of which tensors are one.

A *node* is one index along one axis of one tensor, for example output 5 of ``conv1.weight``. Nodes
are numbered; activations carry those numbers. Whatever makes two nodes inseparable is an *edge*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Nodes = npt.NDArray[np.int64]

FIXED = -1
"""Label of an element that no channel of the network makes: pixels of the image, constants."""

ZERO = -2
"""Label of an element that is zero and may become any channel's: what ``zeros_like`` returns."""

INPUTS = -1
"""Axis of a grouped convolution's inputs, counted over all groups; its weight has no such axis."""


class Axis(NamedTuple):
    """One axis of one tensor.

    Attributes:
        tensor: Name of a parameter or buffer.
        axis: Its dimension, or ``INPUTS``.
    """

    tensor: str
    axis: int


class Event(NamedTuple):
    """Something that an operation does to channels, for people to read.

    Attributes:
        where: Module it happens in.
        what: For example ``normalizes each of them``.
        nodes: The channels.
    """

    where: str
    what: str
    nodes: Nodes


class Width(NamedTuple):
    """One use of a number that a module keeps, as the size of a dimension of channels.

    Attributes:
        factor: The dimension is this many times the number.
        slices: The channels at each position along the dimension.
    """

    factor: float
    slices: list[Nodes]


@dataclass
class ChannelGraph:
    """All that one run says.

    Attributes:
        offsets: First node of each axis.
        sizes: Nodes of each axis.
        blocks: Inputs of one group, for each ``INPUTS`` axis.
        sources: Axes that make channels: outputs of convolutions and linear layers.
        readers: Axes that read channels: their inputs.
        events: For words.
        protections: Nodes that must stay, each with why.
        couplings: Nodes that an operation splits or reorders by position, each with what.
        gated: Nodes whose channels something else multiplies or shifts as a whole.
        scalars: Every number that an operation was given, widths aside, in order.
        scales: Numbers that multiply channels straight from their layer, each with the channels;
            where a width changes one, the layer's weights are scaled.
        uses: Channels of each operation that reads them straight from their layer.
        weight_uses: Weights of one axis, as often as an operation reads them.
        biases: Channels with the entries that are added to them, pair by pair.
        rows: Sets of channels that shrink alike, such as those of the heads of one attention.
        attributes: Widths that a module keeps as a number, by module and attribute.
        indices: Integer buffers that reorder channels, each with the values of the run.
        outputs: Shape and type of everything the network returns.
        visits: For each computed result, in order, the nodes that it carries.
        unfollowed: Operations that could not be followed, as ``name at module``.
        grouped: Weights of norms in several groups.
        units: Its components, once they are computed.
        trains: Whether the network was seen in training too.
        count: Nodes so far.
    """

    offsets: dict[Axis, int] = field(default_factory=dict)
    sizes: dict[Axis, int] = field(default_factory=dict)
    blocks: dict[Axis, int] = field(default_factory=dict)
    sources: dict[Axis, None] = field(default_factory=dict)
    readers: dict[Axis, None] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    protections: list[tuple[Nodes, str]] = field(default_factory=list)
    couplings: list[tuple[Nodes, str]] = field(default_factory=list)
    gated: list[Nodes] = field(default_factory=list)
    scalars: list[tuple[str, float]] = field(default_factory=list)
    scales: list[tuple[float, Nodes]] = field(default_factory=list)
    uses: list[Nodes] = field(default_factory=list)
    weight_uses: list[Axis] = field(default_factory=list)
    biases: list[tuple[Nodes, Nodes]] = field(default_factory=list)
    rows: list[list[Nodes]] = field(default_factory=list)
    attributes: dict[tuple[str, str], list[Width]] = field(default_factory=dict)
    indices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    visits: list[Nodes] = field(default_factory=list)
    unfollowed: dict[str, None] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    trains: bool = False
    units: Any = None
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
        """Say that nodes stand and fall together, pair by pair; one that meets FIXED must stay."""
        first, second = np.broadcast_arrays(first, second)
        pairs = np.stack([first.ravel(), second.ravel()], axis=1)
        pairs = pairs[(pairs != ZERO).all(1)]
        free = (pairs != FIXED).all(1)
        joined = pairs[free & (pairs[:, 0] != pairs[:, 1])]
        if joined.size:
            self._edges.append(_distinct_pairs(joined))
        self.protect(pairs[~free], why)

    def protect(self, nodes: Nodes, why: str) -> None:
        """Say that nodes must stay."""
        distinct = known(nodes)
        if distinct.size:
            self.protections.append((distinct, why))

    def tell(self, where: str, what: str, nodes: Nodes) -> None:
        """Keep words about what an operation does to nodes."""
        distinct = known(nodes)
        if distinct.size:
            self.events.append(Event(where, what, distinct))

    def shrink_alike(self, rows: Sequence[Nodes], what: str) -> None:
        """Say that sets of nodes must lose equally many, such as the channels of each head."""
        sets = [known(row) for row in rows]
        self.rows.append(sets)
        self.visits += sets
        self.couple(np.concatenate(sets), what)

    def couple(self, nodes: Nodes, what: str) -> None:
        """Say that nodes share an operation that counts positions."""
        self.couplings.append((known(nodes), what))
        if (nodes == FIXED).any():
            self.protect(nodes, f"{what} counts them together with what no channel makes")

    @property
    def edges(self) -> Nodes:
        """Every pair, shape (pairs, 2), each once, sorted."""
        if not self._edges:
            return np.empty((0, 2), np.int64)
        return _distinct_pairs(np.concatenate(self._edges))


def _distinct_pairs(pairs: Nodes) -> Nodes:
    """Each pair once, the smaller node first, sorted."""
    low, high = pairs.min(1), pairs.max(1)
    base = int(high.max()) + 1
    codes = np.unique(low * base + high)
    return np.stack([codes // base, codes % base], axis=1)


def known(nodes: Nodes) -> Nodes:
    """The distinct nodes among labels, without FIXED."""
    flat = nodes.ravel()
    if flat.size < 256:
        distinct = np.unique(flat)
        return distinct[distinct >= 0]
    here = np.zeros(max(int(flat.max()), 0) + 1, bool)  # faster than sorting many
    here[flat[flat >= 0]] = True
    return np.flatnonzero(here)
