"""Chains of convolutions, and the segments of a chain that can become one convolution.

A chain has boundaries 0 (its input) to L (its output); link n is between boundaries n and n + 1. A
segment merges consecutive links: the activations at its inner boundaries become identities (Kim et
al. 2023, "Efficient Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming", arXiv
2301.12187, section 3). Residual adds whose two ends are in the segment are merged too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Sides = tuple[int, int]
"""Height and width."""

Kind = Literal["keep", "merge", "remove"]


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution along height and width; by default that of an identity.

    Attributes:
        kernel: Reach of the kernel, with its dilation.
        stride: Stride.
        padding: Zeros at each side.
    """

    kernel: Sides = (1, 1)
    stride: Sides = (1, 1)
    padding: Sides = (0, 0)

    def then(self, second: Window, crop: Sides = (0, 0)) -> Window:
        """The window of two convolutions one after the other, with all padding at the front.

        Kernels add and strides multiply; the sizes of outputs do not change.

        Args:
            second: The following convolution.
            crop: Pixels of the first output, at each side, that the second one does not read.

        Examples:
            >>> Window((3, 3), (2, 2), (1, 1)).then(Window((3, 3), (1, 1), (1, 1)))
            Window(kernel=(7, 7), stride=(2, 2), padding=(3, 3))
        """
        axes = (0, 1)
        return Window(
            _sides(self.kernel[a] + (second.kernel[a] - 1 + 2 * crop[a]) * self.stride[a]
                   for a in axes),
            _sides(self.stride[a] * second.stride[a] for a in axes),
            _sides(self.padding[a] + (second.padding[a] + crop[a]) * self.stride[a] for a in axes),
        )  # fmt: skip

    @property
    def shrinks(self) -> Sides:
        """Pixels by which the output at stride 1 is smaller than the input."""
        return _sides(self.kernel[a] - 1 - 2 * self.padding[a] for a in (0, 1))


def _sides(values: Iterator[int]) -> Sides:
    height, width = values
    return height, width


@dataclass(frozen=True)
class Convolution:
    """A convolution and the batch-norm that follows it.

    Attributes:
        conv: Name of the module.
        norm: Name of the batch-norm, or None.
        window: Geometry.
        inputs: Input channels.
        outputs: Output channels.
        groups: Groups.
    """

    conv: str
    norm: str | None
    window: Window
    inputs: int
    outputs: int
    groups: int


@dataclass(frozen=True)
class Skip:
    """A residual add: boundary ``start``, possibly projected, is added before boundary ``end``.

    Attributes:
        start: Boundary that is read.
        end: Boundary that the sum becomes, after the activation.
        projection: Convolution on the way, or None.
        node: Name of the addition in the graph.
    """

    start: int
    end: int
    projection: Convolution | None
    node: str

    @property
    def window(self) -> Window:
        """Geometry of the way."""
        return Window() if self.projection is None else self.projection.window


@dataclass(frozen=True)
class Link:
    """One convolution of a chain, with what follows it.

    Attributes:
        layer: The convolution and its batch-norm.
        node: Name of the last node before additions in the graph.
        output: Name of the node of the boundary after the link.
        activation: Whether an activation is between the two.
    """

    layer: Convolution
    node: str
    output: str
    activation: bool


@dataclass(frozen=True)
class Chain:
    """Consecutive convolutions of a network.

    Attributes:
        graph: Name of the traced module that contains the chain; empty for the network.
        source: Name of the node that the first convolution reads.
        links: The convolutions.
        skips: Residual adds whose ends are boundaries, in the order of their additions.
        kept: Inner boundaries that something else reads too; no segment contains them.
    """

    graph: str
    source: str
    links: tuple[Link, ...]
    skips: tuple[Skip, ...] = ()
    kept: frozenset[int] = frozenset()

    def boundary(self, number: int) -> str:
        """Name of the node of a boundary."""
        return self.links[number - 1].output if number else self.source

    def segments(self, most_kernel: int) -> Iterator[Segment]:
        """Yield every segment, with each thing that can be done to it.

        Args:
            most_kernel: Largest side of a merged kernel.
        """
        for start in range(len(self.links)):
            for end in range(start + 1, len(self.links) + 1):
                if end - start > 1 and end - 1 in self.kept:
                    break
                if end == start + 1:
                    yield Segment(self, start, end, "keep")
                segment = Segment(self, start, end, "merge")
                if not segment.is_closed:
                    continue
                if max(segment.window.kernel) <= most_kernel and (end - start > 1 or segment.skips):
                    yield segment
                if segment.spanning:
                    yield Segment(self, start, end, "remove")


@dataclass(frozen=True)
class Segment:
    """Links ``start`` to ``end`` - 1 of a chain, and what becomes of them.

    Attributes:
        chain: The chain.
        start: First boundary.
        end: Last boundary.
        kind: ``keep`` leaves a single link as it is; ``merge`` makes one convolution; ``remove``
            leaves the residual add that spans the segment, without its branch.
    """

    chain: Chain
    start: int
    end: int
    kind: Kind

    @property
    def name(self) -> str:
        """Name of the module that replaces the segment: its first convolution's."""
        own = self.links[0].layer.conv
        return f"{self.chain.graph}.{own}" if self.chain.graph else own

    @property
    def links(self) -> tuple[Link, ...]:
        """The links."""
        return self.chain.links[self.start : self.end]

    @property
    def skips(self) -> list[Skip]:
        """Residual adds that the segment contains."""
        return [s for s in self.chain.skips if s.start >= self.start and s.end <= self.end]

    @property
    def outer(self) -> list[Skip]:
        """Residual adds that start before the segment and end with it; they stay."""
        return [s for s in self.chain.skips if s.start < self.start and s.end == self.end]

    @property
    def spanning(self) -> Skip | None:
        """The only residual add from the first to the last boundary, or None."""
        ends = [s for s in self.skips if (s.start, s.end) == (self.start, self.end)]
        return ends[0] if len(ends) == 1 else None

    @property
    def last(self) -> str:
        """Name of the node whose value the replacement gives."""
        ends = [skip.node for skip in self.skips if skip.end == self.end]
        return ends[-1] if ends else self.links[-1].node

    @property
    def is_closed(self) -> bool:
        """Whether no residual add has one end inside and the other outside."""
        inner = range(self.start + 1, self.end)
        if any(number in self.chain.kept for number in inner):
            return False
        for skip in self.chain.skips:
            starts, ends = skip.start in inner, skip.end in inner
            if (starts and skip.end > self.end) or (ends and skip.start < self.start):
                return False
        # The sum of the segment must not contain a part from outside.
        at_end = [skip for skip in self.chain.skips if skip.end == self.end]
        inside = [skip.start >= self.start for skip in at_end]
        return inside == sorted(inside, reverse=True)

    @property
    def activations(self) -> int:
        """Number of activations that become identities."""
        return sum(link.activation for link in self.links[:-1])

    @property
    def groups(self) -> int:
        """Groups of the merged convolution: the largest number that divides those of all parts."""
        layers = [link.layer for link in self.links]
        layers += [skip.projection for skip in self.skips if skip.projection]
        return math.gcd(*(layer.groups for layer in layers))

    @property
    def margins(self) -> tuple[Sides, ...]:
        """Pixels at each side by which each boundary is larger once all padding is in front."""
        margins: list[Sides] = [(0, 0)]
        for number in reversed(range(self.start, self.end)):
            windows = [(self.chain.links[number].layer.window, margins[0])]
            windows += [
                (skip.window, margins[skip.end - number - 1])
                for skip in self.skips
                if skip.start == number
            ]
            needs = [_margin(window, margin) for window, margin in windows]
            margins.insert(0, (max(h for h, _ in needs), max(w for _, w in needs)))
        return tuple(margins)

    def crop(self, start: int, end: int, window: Window) -> Sides:
        """Pixels of a boundary, at each side, that a convolution to another does not read."""
        margins = self.margins
        need = _margin(window, margins[end - self.start])
        has = margins[start - self.start]
        return has[0] - need[0], has[1] - need[1]

    @property
    def window(self) -> Window:
        """Geometry of the merged convolution."""
        window = Window()
        for number, link in enumerate(self.links, self.start):
            crop = self.crop(number, number + 1, link.layer.window)
            window = window.then(link.layer.window, crop)
        return window

    @property
    def moves_padding(self) -> bool:
        """Whether padding inside the segment moves to its front, which changes the border."""
        return any(any(margin) for margin in self.margins[1:])

    def __str__(self) -> str:
        """First and last convolution, and what becomes of them."""
        names = [link.layer.conv for link in (self.links[0], self.links[-1])]
        return f"{self.kind} {' to '.join(dict.fromkeys(names))}"


def _margin(window: Window, after: Sides) -> Sides:
    """Margin that a convolution's input needs for a margin of its output."""
    return _sides(after[a] * window.stride[a] + window.padding[a] for a in (0, 1))
