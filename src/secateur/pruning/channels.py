"""Groups of removable channels, with all tensor entries that depend on them.

A *unit* is a set of tensor entries that can only be removed together, such as output 5 of a
convolution, entry 5 of the following batch-norm and input 5 of each layer that reads it. Units with
entries in the same tensors are interchangeable and form a *group*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from secateur.errors import NetworkError
from secateur.pruning.tracing.channel_graph import Axis, ChannelGraph
from secateur.pruning.tracing.probe import Example

Ints = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Member:
    """Positions of a group's units along one axis of a tensor.

    Attributes:
        axis: Tensor and dimension.
        index: Positions along it, increasing, shape (entries,).
        unit: The unit at each position, shape (entries,).
        role: ``makes`` (produces the channels), ``reads`` or ``follows`` (norms, biases, inputs of
            grouped convolutions).
    """

    axis: Axis
    index: Ints
    unit: Ints
    role: str

    @property
    def module(self) -> str:
        """Name of the module that owns the tensor."""
        return self.axis.tensor.rpartition(".")[0]

    @property
    def layer(self) -> str:
        """Name for people: the module, or a parameter of the network itself."""
        return self.module or self.axis.tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Interchangeable units.

    For example ``conv(3, 8) -> bn(8) -> relu -> conv(8, 4)`` makes one group of 8 units: output i
    of the first convolution, entry i of the batch-norm's four vectors, input i of the second.

    Attributes:
        name: The first module, in the network's order, whose weight produces the channels.
        units: Number of units.
        members: All entries of the units.
        balanced: Whether operations by position (chunk, channel shuffle) use it, so that it must
            shrink evenly in steps.
        steps: Number of possible widths: 1 .. ``steps``, where ``steps`` is the full width.
        words: Why its members depend on each other, a line each.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    balanced: bool
    steps: int
    words: tuple[str, ...]

    @cached_property
    def channels(self) -> int:
        """Number of outputs of the layer that names the group which belong to the group."""
        return len(next(m for m in self.members if m.role == "makes").index)

    def makers(self) -> Iterable[Member]:
        """Weights that produce its channels."""
        return (member for member in self.members if member.role == "makes")

    def readers(self) -> Iterable[Member]:
        """Weights that read its channels."""
        return (member for member in self.members if member.role == "reads")

    def width(self, fraction: float, round_to: int = 1) -> int:
        """Return the remaining steps after removing ``floor(fraction * steps)``, rounded up.

        All layers that produce the channels get a width that is a multiple of ``round_to``, at most
        the full width; at least one step is kept.
        """
        removed = math.floor(fraction * self.steps + 1e-9 * self.steps)  # 0.29 * 100 is 28.99...
        remaining = max(1, self.steps - removed)
        step = self.stride(round_to)
        return min(self.steps, math.ceil(remaining / step) * step)

    def stride(self, round_to: int) -> int:
        """Smallest number of steps that changes every layer by a multiple of ``round_to``."""
        each = [len(member.index) // self.steps for member in self.makers()]
        return math.lcm(*(round_to // math.gcd(round_to, many) for many in each))

    def __str__(self) -> str:
        """Explain why the members depend on each other."""
        return "\n".join((f"{self.name}: {self.units} channels or sets of them", *self.words))


@dataclass(frozen=True)
class Protected:
    """A layer whose channels cannot be removed, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Prunable:
    """The removable groups and protected layers of a network, in the network's order.

    Attributes:
        groups: Removable groups.
        protected: Layers whose channels cannot be removed, with reasons.
        unfollowed: Operations without a rule, as ``name at module``.
        example: One input, on the meta device unless ``values`` is set.
        graph: Dependencies observed in the run.
        values: Whether forward depends on values, so that it must run on real tensors.
    """

    groups: tuple[Group, ...]
    protected: tuple[Protected, ...]
    unfollowed: tuple[str, ...]
    example: Example
    graph: ChannelGraph
    values: bool = False

    def group(self, name: str) -> Group:
        """The group called ``name``.

        Raises:
            NetworkError: There is no such group; the message has the reason if the layer is
                protected.
        """
        for group in self.groups:
            if group.name == name:
                return group
        reasons = {layer.name: layer.reason for layer in self.protected}
        raise NetworkError(
            "layer cannot be pruned",
            where=name,
            expected=f"one of {', '.join(group.name for group in self.groups) or 'none'}",
            found=reasons.get(name),
        )
