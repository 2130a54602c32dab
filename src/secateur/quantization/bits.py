"""Mixed precision: scans bits of each layer's weights, and chooses from the scan.

As in the pruning scan, one layer at a time has its weights rounded to few bits with everything else
in float, and the loss on validation images is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.data import Images
from secateur.onnx_ir.model import Graph
from secateur.quantization.scheme import weighted_nodes
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import WeightRule, choose_scales, round_weight
from secateur.statistics import Interval, paired_drop, proportion
from secateur.training.evaluation import BATCH

WIDTHS = (2, 3, 4, 5, 6, 7, 8)

Bits = dict[str, int]
"""From node name to the bits of its weight."""


@dataclass(frozen=True)
class BitPoint:
    """One layer's weight at one number of bits, everything else in float.

    Attributes:
        layer: Name of the node; ``network`` for the float network itself, at 32 bits.
        bits: Bits of its weight.
        weights: Number of elements of its weight.
        correct: Number of correct images.
        n: Number of images.
        accuracy: Accuracy in [0, 1] with its 95 % interval.
        drop: Loss of accuracy against the float network on the same images, with its interval.
        loss: Increase of the mean cross-entropy over the float network, in nats.
    """

    layer: str
    bits: int
    weights: int
    correct: int
    n: int
    accuracy: Interval
    drop: Interval
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """Return the point as plain data."""
        return asdict(self) | {"accuracy": list(self.accuracy), "drop": list(self.drop)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BitPoint:
        """The inverse of :meth:`to_dict`."""
        intervals = {name: Interval(*values[name]) for name in ("accuracy", "drop")}
        return cls(**(values | intervals))


@torch.no_grad()
def scan_bits(
    model: onnx.ModelProto,
    images: Images,
    prepare: Callable[[Tensor], Tensor],
    widths: Sequence[int] = WIDTHS,
    rule: WeightRule | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[BitPoint]:
    """Round one layer's weights at a time to each of ``widths``.

    The network runs once up to each layer, and from there once for each width.

    Args:
        model: The float graph.
        images: Validation images, on the CPU.
        prepare: Maps stored pixels to the graph's input.
        widths: Numbers of bits, each in 2 to 8.
        rule: Granularity and saturation freedom; its bits are not used.
        advance: Called for each layer of each batch of 250 images.

    Returns:
        The float network, then each layer in the graph's order at each width.

    Raises:
        SecateurError: An operator of the graph cannot be simulated.
    """
    network, rule = Simulated(model), rule or WeightRule()
    rounded = {
        node.name: [_rounded(network.graph, node, width, rule) for width in widths]
        for node in weighted_nodes(network.graph)
    }
    results: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
    for start in range(0, len(images), BATCH):
        labels = images.labels[start : start + BATCH]
        values = network.start(prepare(images.pixels[start : start + BATCH]))
        for number, node in enumerate(network.walk(values)):
            for width, weight in zip(widths, rounded.get(node.name, ()), strict=False):
                logits = network.branch(values, number, weight)
                results.setdefault((node.name, width), []).append(_right_and_loss(logits, labels))
            if node.name in rounded:
                advance()
        logits = values[network.graph.outputs[0]]
        results.setdefault(("network", 32), []).append(_right_and_loss(logits, labels))
    return _points(results, {name: int(w[0].numel()) for name, w in rounded.items()})


def _rounded(graph: Graph, node: onnx.NodeProto, bits: int, rule: WeightRule) -> Tensor:
    narrow = WeightRule(bits, rule.per_channel, rule.saturation_free)
    weight = graph.constant(node.input[1])
    affine = choose_scales(weight, narrow)
    return torch.from_numpy(affine.dequantize(round_weight(weight, affine, narrow)))


def _right_and_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits.argmax(1) == labels, F.cross_entropy(logits, labels, reduction="none")


def _points(
    results: Mapping[tuple[str, int], list[tuple[Tensor, Tensor]]], weights: Mapping[str, int]
) -> list[BitPoint]:
    joined = {
        key: (torch.cat([r for r, _ in parts]).numpy(), torch.cat([x for _, x in parts]).double())
        for key, parts in results.items()
    }
    reference, loss = joined.pop(("network", 32))
    n = len(reference)
    points = []
    for (layer, bits), (right, losses) in {("network", 32): (reference, loss), **joined}.items():
        correct = int(np.sum(right))
        points.append(
            BitPoint(
                layer,
                bits,
                weights.get(layer, sum(weights.values())),
                correct,
                n,
                proportion(correct, n),
                paired_drop(reference, right),
                float(losses.mean() - loss.mean()),
            )
        )
    return points


def total_bits(bits: Mapping[str, int], points: Iterable[BitPoint]) -> int:
    """Total bits of all scanned weights with ``bits`` of each layer."""
    weights = {point.layer: point.weights for point in points if point.layer in bits}
    return sum(bits[layer] * count for layer, count in weights.items())


def narrowing(points: Sequence[BitPoint]) -> list[Bits]:
    """Mixed widths, from every layer at its widest down to every layer at its narrowest.

    Each step narrows the layer that loses the least cross-entropy per saved bit, assuming that
    losses add. A layer may skip widths, because losses may not be monotonic.

    Returns:
        The widths after each step; the first is the widest.
    """
    loss: dict[str, dict[int, float]] = {}
    weights: dict[str, int] = {}
    for point in points:
        if point.layer != "network":
            loss.setdefault(point.layer, {})[point.bits] = max(point.loss, 0.0)
            weights[point.layer] = point.weights
    bits = {layer: max(known) for layer, known in loss.items()}
    path = [dict(bits)]
    while steps := [
        ((loss[layer][lower] - loss[layer][now]) / (weights[layer] * (now - lower)), layer, lower)
        for layer, now in bits.items()
        for lower in loss[layer]
        if lower < now
    ]:
        _, layer, lower = min(steps)
        bits[layer] = lower
        path.append(dict(bits))
    return path


def choose_bits(
    points: Sequence[BitPoint],
    size: float | None = None,
    acceptable: Callable[[Bits], bool] | None = None,
) -> Bits:
    """Choose mixed widths by size or by a test.

    Args:
        points: Result of :func:`scan_bits`.
        size: Largest fraction of the bits of the widest choice, in (0, 1]; the first widths of
            :func:`narrowing` within it are returned.
        acceptable: Test of widths, called for O(log n) of :func:`narrowing`; the narrowest
            acceptable widths are returned, or the widest if none are.

    Raises:
        ValueError: Not exactly one of ``size`` and ``acceptable`` is given, or no widths are small
            enough.
    """
    path = narrowing(points)
    if (size is None) == (acceptable is None):
        raise ValueError("need size or acceptable, and not both")
    if acceptable is None:
        assert size is not None
        limit = round(size * total_bits(path[0], points))
        for bits in path:
            if total_bits(bits, points) <= limit:
                return bits
        raise ValueError(f"the narrowest scanned widths are larger than {size} of the widest")
    good, bad = 0, len(path)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if acceptable(path[middle]) else (good, middle)
    return path[good]
