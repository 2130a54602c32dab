"""The loss of a segment: the increase of the cross-entropy if only this segment changes.

Without its activations, a segment gives other values, mostly with another mean, and the rest of the
network sees what it never saw. Fine-tuning mends this in a few steps, so that the loss before
fine-tuning says little about the loss after it. A full fine-tuning for each segment, as in Kim et
al. 2023 (arXiv 2301.12187, section 4.2), takes days. Each linear segment is therefore fitted alone
to the output that it had (:mod:`secateur.pruning.merging.segment_fit`), for a few steps on training
images; the cross-entropy is then measured on other images.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from secateur.console import progress
from secateur.data import Images
from secateur.pruning.merging.links import Segment
from secateur.pruning.merging.segment_fit import Fit
from secateur.training.evaluation import Prepare, correct_and_loss


def measure_losses(
    traced: nn.Module,
    segments: Sequence[Segment],
    fit: Fit,
    images: Images,
    prepare: Prepare,
    batch: int,
) -> dict[Segment, float]:
    """Return the loss of each segment, in nats; not below 0.

    An increase below 0 is noise of the images, or a gain that one segment's fit cannot promise the
    network; it counts as 0. A link that is kept, or a merge without activations or padding inside,
    changes nothing and has a loss of 0.

    Args:
        traced: A network of :func:`secateur.pruning.merging.traced.trace_modules`, on the device of
            ``images``; not modified.
        segments: Of its chains.
        fit: Fits each segment.
        images: Validation images.
        prepare: Maps stored pixels to the network's input.
        batch: Images of an evaluation's batch.
    """

    def loss(network: nn.Module) -> float:
        return float(correct_and_loss(network, images, prepare, batch)[1].mean())

    before, losses = loss(traced), dict.fromkeys(segments, 0.0)
    changed = [segment for segment in segments if changes(segment)]
    with progress("loss of segments", len(changed)) as tick:
        for segment in changed:
            losses[segment] = max(0.0, loss(fit.linearize(traced, [segment])) - before)
            tick.advance()
    return losses


def changes(segment: Segment) -> bool:
    """Whether the network computes something else with this segment."""
    if segment.kind == "merge":
        return bool(segment.activations or segment.moves_padding)
    return segment.kind == "remove"
