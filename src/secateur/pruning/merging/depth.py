"""Reduces the depth of a network by merging and removing layers, for a limit on latency.

1. Chains of convolutions are found (:mod:`secateur.pruning.merging.chains`).
2. The latency of each segment of a chain is measured, as it is and merged into one convolution.
3. The loss of each faster segment is measured.
4. The best choice within the limit is found exactly; the network is built and timed. If it misses
   the limit, the budget is corrected by what the choice has really saved, and chosen again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from secateur import environment
from secateur.benchmarking.layer_timer import LayerTimer, Precision
from secateur.benchmarking.network_timer import NetworkTimer
from secateur.data import Images
from secateur.errors import DataError, NetworkError
from secateur.pruning.latency import ATTEMPTS, TOLERANCE, LayerTimes, NetworkTimes
from secateur.pruning.merging.chains import chains_of
from secateur.pruning.merging.choice import choose_merges
from secateur.pruning.merging.latency_table import LatencyTable
from secateur.pruning.merging.links import Kind, Segment
from secateur.pruning.merging.loss_table import measure_losses
from secateur.pruning.merging.rewrite import linearize, merge_segments
from secateur.pruning.merging.segment_fit import Fit
from secateur.pruning.merging.traced import trace_modules
from secateur.runtimes import Runtime
from secateur.training.evaluation import BATCH, Prepare

MOST_KERNEL = 7
"""Largest side of a merged kernel; larger ones are slow, and their weights many."""
FIT_STEPS = 30
"""Steps of a segment's fit."""


@dataclass(frozen=True)
class DepthChoice:
    """What is merged and removed, and the measured latency.

    Attributes:
        traced: The network as graphs of its modules.
        segments: What is merged and removed, in the network's order.
        original: Measured milliseconds of the network, on one image.
        shallow: Measured milliseconds after merging, timed in turns.
        predicted: Milliseconds predicted from the layers.
        loss: Sum of the losses of the segments, in nats.
    """

    traced: nn.Module
    segments: tuple[Segment, ...]
    original: float
    shallow: float
    predicted: float
    loss: float

    @property
    def ratio(self) -> float:
        """Measured latency relative to the network's."""
        return self.shallow / self.original

    def __str__(self) -> str:
        """Summary in one line, and what becomes of each segment."""
        head = (
            f"{self.original:.3f} ms -> {self.shallow:.3f} ms, {self.ratio:.2f} of it "
            f"(predicted {self.predicted:.3f} ms)"
        )
        return "\n".join([head, *map(str, self.segments)])


@dataclass(frozen=True)
class MergedDepth(DepthChoice):
    """A network of less depth, before and after merging.

    Attributes:
        linearized: The network without the chosen activations and branches, to be trained;
            :func:`secateur.merge_segments` then merges it.
        merged: The same network with each linear segment merged into one convolution.
    """

    linearized: nn.Module
    merged: nn.Module


def merge_depth(
    model: nn.Module,
    example_input: Tensor,
    images: Tensor,
    labels: Tensor,
    latency: float = 0.7,
    *,
    precision: Precision = "int8",
    threads: int | None = None,
    most_kernel: int = MOST_KERNEL,
    fit_steps: int = FIT_STEPS,
) -> MergedDepth:
    """Merge consecutive convolutions, and remove residual blocks, for a limit on latency.

    Activations become identities where that costs the least accuracy for the time it saves, and
    convolutions with nothing but batch-norms and residual adds between them become one. The choice
    is the best one under the measured tables; see :mod:`secateur.pruning.merging.depth`. Train
    ``linearized`` next, then merge it by :func:`secateur.merge_segments`.

    Args:
        model: A classifier on the CPU; not modified.
        example_input: One batch, (N, C, H, W).
        images: As the network reads them, float (N, C, H, W); no test images. The first half is
            for fits, the second half measures losses.
        labels: Their classes, int64 (N,).
        latency: Largest remaining fraction of the latency, in (0, 1].
        precision: Precision of the exported file, ``fp32`` or ``int8``.
        threads: Threads of the runtime; by default those of torch.
        most_kernel: Largest side of a merged kernel.
        fit_steps: Steps for which each linear segment is fitted to its former output.

    Raises:
        NetworkError: The network cannot be traced or exported, or the target cannot be reached.
        DataError: Fewer than two images, or not as many labels.
        ValueError: ``latency`` is out of range.

    Examples:
        >>> first, second = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 8, 3, padding=1)
        >>> pool, last = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)
        >>> network = nn.Sequential(first, nn.ReLU(), second, pool, nn.Flatten(), last)
        >>> images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
        >>> depth = secateur.merge_depth(network, images[:1], images, labels, latency=0.9)
        >>> depth.merged.get_submodule("0")
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    if not 0 < latency <= 1:
        raise ValueError(f"latency must be in (0, 1], found {latency}")
    fitted, measured = _halves(images, labels)
    count = threads or environment.threads()
    timer, fit = LayerTimer(precision, count), Fit(fitted, _as_it_is, fit_steps)
    network_timer = NetworkTimer(example_input.shape[1:], precision, count)
    try:
        choice = choose_depth(
            model, example_input, fit, measured, _as_it_is, latency, timer, network_timer,
            most_kernel,
        )  # fmt: skip
    finally:
        timer.save()
    linearized = fit.linearize(choice.traced, choice.segments)
    return MergedDepth(**vars(choice), linearized=linearized, merged=merge_segments(linearized))


def _halves(images: Tensor, labels: Tensor) -> tuple[Images, Images]:
    if len(images) < 2 or len(images) != len(labels):
        raise DataError(
            "images and labels to merge with",
            expected="at least 2 images, with a label each",
            found=f"{len(images)} images and {len(labels)} labels",
        )
    half = len(images) // 2
    first, second = (slice(None, half), slice(half, None))
    return Images(images[first], labels[first], ()), Images(images[second], labels[second], ())


def _as_it_is(pixels: Tensor) -> Tensor:
    return pixels


def choose_depth(
    model: nn.Module,
    example_input: Tensor,
    fit: Fit,
    images: Images,
    prepare: Prepare,
    target: float,
    layer_times: LayerTimes,
    network_timer: NetworkTimes,
    most_kernel: int = MOST_KERNEL,
    kinds: Collection[Kind] = ("merge", "remove"),
) -> DepthChoice:
    """Choose what to merge and remove for a limit on latency, by any timers.

    Args:
        model: Not modified.
        example_input: One batch.
        fit: Fits linear segments before their loss is measured.
        images: Validation images.
        prepare: Maps stored pixels to the network's input.
        target: Largest remaining fraction of the latency, in (0, 1].
        layer_times: Time of a layer.
        network_timer: Times the networks.
        most_kernel: Largest side of a merged kernel.
        kinds: What may be done to a segment, besides keeping it.

    Raises:
        NetworkError: The target cannot be reached.
    """
    traced = trace_modules(model, example_input)
    original = network_timer.load(traced)
    first, reference = network_timer.time(original, layer_times.reference)
    table = LatencyTable(traced, example_input, layer_times, first / reference)
    every = [segment for chain in chains_of(traced) for segment in chain.segments(most_kernel)]
    segments = table.faster(s for s in every if s.kind == "keep" or s.kind in kinds)
    losses = measure_losses(traced, segments, fit, images, prepare, min(BATCH, len(images)))
    search = _Search(traced, table, segments, losses, original, network_timer)
    best = search.within(target)
    if best.ratio > (1 + TOLERANCE) * target:
        raise NetworkError(
            "target cannot be reached by merging",
            where=f"latency = {target:g}",
            found=f"{best.ratio:.3f} in the fastest network that was tried",
            remedy="give a larger target, or remove channels too",
        )
    return best


class _Search:
    """Chooses, builds and times until the target is met."""

    def __init__(
        self,
        traced: nn.Module,
        table: LatencyTable,
        segments: Sequence[Segment],
        losses: dict[Segment, float],
        original: Runtime,
        network_timer: NetworkTimes,
    ) -> None:
        self.traced, self.table, self.losses = traced, table, losses
        self.original, self.timer = original, network_timer
        self.latencies = {segment: table[segment] for segment in segments}
        self.outside = table.outside(segments)

    def within(self, target: float) -> DepthChoice:
        """The choice with the least loss that meets the target, or the fastest that was tried."""
        saved = (1 - target) * self.table.full
        tried: list[DepthChoice] = []
        for _ in range(ATTEMPTS):
            chosen = self._choose(self.table.full - saved)
            if tried and chosen == tried[-1].segments:
                break
            tried.append(self._time(chosen))
            if (1 - TOLERANCE) * target <= tried[-1].ratio <= target:
                break
            promised = 1 - tried[-1].predicted / tried[-1].original
            real = max(1 - tried[-1].ratio, 1e-3)
            saved = min((1 - target) * promised / real, 1.0) * self.table.full
        return min(tried, key=lambda one: _merit(one, target))

    def _choose(self, budget: float) -> tuple[Segment, ...]:
        """Merges and removals within a budget, or the fastest ones."""
        chosen = choose_merges(self.latencies, self.losses, budget - self.outside)
        if chosen is None:
            chosen = choose_merges(self.latencies, self.latencies, sum(self.latencies.values()))
        assert chosen is not None
        return tuple(segment for segment in chosen if segment.kind != "keep")

    def _time(self, segments: tuple[Segment, ...]) -> DepthChoice:
        """Build a choice, without its fits, which do not change the latency, and time it."""
        network = merge_segments(linearize(self.traced, segments))
        now, after = self.timer.time(self.original, self.timer.load(network))
        saved = sum(self._saves(segment) for segment in segments)
        return DepthChoice(
            self.traced, segments, now, after, (1 - saved / self.table.full) * now,
            sum(self.losses[segment] for segment in segments),
        )  # fmt: skip

    def _saves(self, segment: Segment) -> float:
        links = range(segment.start, segment.end)
        kept = (self.latencies[Segment(segment.chain, n, n + 1, "keep")] for n in links)
        return sum(kept) - self.latencies[segment]


def _merit(choice: DepthChoice, target: float) -> tuple[bool, float]:
    """Sort key: within the target first, by the loss; others by their latency."""
    within = choice.ratio <= target
    return not within, choice.loss if within else choice.ratio
