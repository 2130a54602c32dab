"""The latency of each segment as it is, merged, or without its branch, on this machine.

Layers are measured by the timer that chooses widths, with its cache. The time outside of layers
(adding, calling, moving results) is proportional to the number of elements that layers output, as
in :class:`secateur.pruning.latency.Choice`; merging saves it for the inner tensors of a segment. If
the network is faster than the sum of its layers, all of them are scaled to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from secateur.benchmarking.layer_timer import Layer
from secateur.pruning.geometry import list_calls
from secateur.pruning.merging.links import Convolution, Segment
from secateur.pruning.tracing.probe import Example, example_of


class LatencyTable:
    """Latencies of segments, and of the network that a choice of segments gives.

    Args:
        traced: A network of :func:`secateur.pruning.merging.traced.trace_modules`; not modified.
        example_input: See :func:`secateur.plan_removal`.
        layer_times: Latency of a layer, in any unit.
        full: Latency of the network, in the same unit.
    """

    def __init__(
        self,
        traced: nn.Module,
        example_input: Example,
        layer_times: Callable[[Layer], float],
        full: float,
    ) -> None:
        calls = list_calls(traced, example_of(example_input))
        self._layers = {call.weight.removesuffix(".weight"): call.layer for call in calls}
        self._layer_times, self.full = layer_times, full
        layers = [call.layer for call in calls]
        inside = sum(map(layer_times, layers))
        # A layer in a network can be faster than alone, because its input is still in the cache.
        self._scale = min(1.0, full / inside)
        self._moving = max(0.0, full - inside) / sum(layer.elements for layer in layers)

    def __getitem__(self, segment: Segment) -> float:
        """Latency of a segment, with the projections that are added to it and stay."""
        stays = [*segment.outer]
        cost = 0.0
        if segment.kind == "keep":
            stays += segment.skips
            cost = self._time(self.layer(segment))
        elif segment.kind == "merge":
            cost = self._time(self.layer(segment))
        elif segment.spanning is not None:
            stays.append(segment.spanning)
        kept = [skip.projection for skip in stays if skip.projection]
        return cost + sum(self._time(self._layer(segment, each)) for each in kept)

    def layer(self, segment: Segment) -> Layer:
        """The single layer of a kept link, or the one that a segment merges into."""
        first = self._layer(segment, segment.links[0].layer)
        if segment.kind == "keep":
            return first
        window = segment.window
        return Layer(
            "conv",
            first.inputs,
            segment.links[-1].layer.outputs,
            segment.groups,
            first.size,
            window.kernel,
            window.stride,
            (1, 1),
            (*window.padding, *window.padding),
        )

    def faster(self, segments: Iterable[Segment]) -> list[Segment]:
        """The segments that are faster than their links as they are, and all links as they are.

        With losses that are not negative, the others are never part of the best choice.
        """
        return [
            segment
            for segment in segments
            if segment.kind == "keep" or self[segment] < self._as_it_is(segment)
        ]

    def outside(self, segments: Iterable[Segment]) -> float:
        """Latency of all that is in no link of these segments' chains."""
        return self.full - sum(self[s] for s in segments if s.kind == "keep")

    def _as_it_is(self, segment: Segment) -> float:
        links = range(segment.start, segment.end)
        return sum(self[Segment(segment.chain, n, n + 1, "keep")] for n in links)

    def _layer(self, segment: Segment, convolution: Convolution) -> Layer:
        graph = segment.chain.graph
        return self._layers[f"{graph}.{convolution.conv}" if graph else convolution.conv]

    def _time(self, layer: Layer) -> float:
        return self._scale * self._layer_times(layer) + self._moving * layer.elements
