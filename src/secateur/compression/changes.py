"""What a candidate changes in the network: channels that leave, or layers that merge.

A changed network is plain data and weights: :meth:`Change.start` gives the network to train,
:meth:`Change.finish` the trained one that ships, and :meth:`Change.rebuild` a network to load its
weights into.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from secateur.pruning.merging.rewrite import from_json, linearize, merge_segments
from secateur.pruning.merging.segment_fit import Fit
from secateur.pruning.merging.traced import trace_modules
from secateur.pruning.plan import Plan
from secateur.pruning.surgery import rebuild, remove
from secateur.recipe import content_id


class Change(Protocol):
    """A change of a network."""

    @property
    def key(self) -> dict[str, str]:
        """The change, for the id of a stage."""

    def start(self, network: nn.Module) -> nn.Module:
        """The network to train, from the given one."""

    def finish(self, trained: nn.Module) -> nn.Module:
        """The network that ships, from the trained one."""

    def rebuild(self, network: nn.Module) -> nn.Module:
        """The network that ships, without its weights."""


@dataclass(frozen=True)
class ChannelRemoval:
    """Channels leave.

    Attributes:
        plan: The plan of removal.
    """

    plan: Plan

    @property
    def key(self) -> dict[str, str]:
        """Id of the plan."""
        return {"plan": content_id(self.plan.to_json())}

    def start(self, network: nn.Module) -> nn.Module:
        """The smaller network."""
        return remove(network, self.plan)

    def finish(self, trained: nn.Module) -> nn.Module:
        """The smaller network as it is."""
        return trained

    def rebuild(self, network: nn.Module) -> nn.Module:
        """The network in the smaller widths."""
        return rebuild(network, self.plan)


@dataclass(frozen=True)
class LayerMerging:
    """Layers merge, and branches leave.

    Attributes:
        segments: Result of :func:`secateur.pruning.merging.rewrite.to_json`.
        example: One batch, on the CPU.
        fit: Fits the merged segments before the training.
    """

    segments: str
    example: Tensor
    fit: Fit

    @property
    def key(self) -> dict[str, str]:
        """The segments."""
        return {"merges": self.segments}

    def start(self, network: nn.Module) -> nn.Module:
        """The network without activations and branches."""
        traced = self._traced(network)
        return self.fit.linearize(traced, from_json(traced, self.segments))

    def finish(self, trained: nn.Module) -> nn.Module:
        """The merged network."""
        return merge_segments(trained)

    def rebuild(self, network: nn.Module) -> nn.Module:
        """The merged network, without its weights."""
        traced = self._traced(network)
        return merge_segments(linearize(traced, from_json(traced, self.segments)))

    def _traced(self, network: nn.Module) -> nn.Module:
        return trace_modules(copy.deepcopy(network).cpu(), self.example)
