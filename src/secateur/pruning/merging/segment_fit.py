"""Fits a linear segment to what the segment computed with its activations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from secateur.data import Images
from secateur.data.images import in_turn, parts_of
from secateur.pruning.merging.linear_segment import LinearSegment
from secateur.pruning.merging.links import Segment
from secateur.pruning.merging.rewrite import linearize, segment_as_it_is
from secateur.training.evaluation import Prepare

BATCH = 32
"""Images of a step."""
RATE = 3e-3
"""Adam's learning rate at the first step; it falls linearly to 0."""
MOST_ELEMENTS = 2**25
"""Largest number of elements of a segment's recorded inputs; more images are not used."""


@dataclass(frozen=True)
class Fit:
    """Images for the fit, and its length.

    Attributes:
        images: Training images.
        prepare: Maps stored pixels to the network's input.
        steps: Steps of a segment; 0 leaves it as it is.
    """

    images: Images
    prepare: Prepare
    steps: int

    def linearize(self, traced: nn.Module, segments: Sequence[Segment]) -> nn.Module:
        """Linearize a network, and fit each segment that is merged.

        Args:
            traced: See :func:`secateur.pruning.merging.rewrite.linearize`.
            segments: See there.
        """
        network = linearize(traced, segments)
        for segment in segments:
            if segment.kind == "merge":
                self(network, traced, segment)
        return network

    def __call__(self, network: nn.Module, traced: nn.Module, segment: Segment) -> None:
        """Train a linear segment of ``network``, in place, on its inputs there.

        The target is what the segment gives in ``traced``, with its activations and its own inputs;
        the error is the mean square. The rest of the network does not change, nor do running
        statistics of batch-norms. A fit that does not lower the error is undone.

        Args:
            network: Result of :func:`secateur.pruning.merging.rewrite.linearize`.
            traced: The network that it was made from.
            segment: One that is merged.
        """
        linear = network.get_submodule(segment.name)
        assert isinstance(linear, LinearSegment)
        if not (self.steps and (segment.activations or segment.moves_padding)):
            return
        graph = traced.get_submodule(segment.chain.graph)
        assert isinstance(graph, fx.GraphModule)
        before = segment_as_it_is(graph, segment)
        inputs, sources = (self._inputs(each, segment.name) for each in (network, traced))
        with torch.no_grad():
            targets = [before(source) for source in sources]
        _train(linear, inputs, targets, self.steps)

    @torch.no_grad()
    def _inputs(self, network: nn.Module, name: str) -> list[Tensor]:
        """Inputs of a module, in batches."""
        inputs: list[Tensor] = []
        hook = network.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments: inputs.append(arguments[0])
        )
        parts = parts_of(len(self.images), BATCH)
        for pixels in in_turn(self.images.pixels, parts):
            network(self.prepare(pixels))
            if sum(each.numel() for each in inputs) >= MOST_ELEMENTS:
                break
        hook.remove()
        return inputs


def _train(linear: LinearSegment, inputs: list[Tensor], targets: list[Tensor], steps: int) -> None:
    start, first = copy.deepcopy(linear.state_dict()), _error(linear, inputs, targets)
    optimizer = torch.optim.Adam(linear.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.zero_grad()
            turn = step % len(inputs)
            F.mse_loss(linear(inputs[turn]), targets[turn]).backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad(set_to_none=True)
    if not _error(linear, inputs, targets) < first:
        linear.load_state_dict(start)


@torch.no_grad()
def _error(linear: LinearSegment, inputs: list[Tensor], targets: list[Tensor]) -> float:
    pairs = zip(inputs, targets, strict=True)
    return sum(float(F.mse_loss(linear(x), y)) * len(x) for x, y in pairs)
