"""Computed rows of the report page."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from secateur.report import numbers
from secateur.report.contents import ImageChanges, Layer, Report, Variant
from secateur.report.summary import bounds

MATRIX = 20
"""Largest number of classes for a confusion matrix; otherwise the most frequent mistakes are
shown."""


class Key(NamedTuple):
    """A key number: the final file's value, and the reference's below it.

    Attributes:
        change: The change in a few words.
        better: Whether the change is an improvement.
    """

    label: str
    value: str
    note: str
    before: str
    change: str
    better: bool


def key_numbers(report: Report) -> list[Key]:
    """Accuracy, size and latency of the last variant and of the reference."""
    if len(report.variants) < 2:
        return []
    before, after = report.variants[0], report.variants[-1]
    keys = []
    if after.top1 and before.top1:
        change = f"{numbers.signed(after.top1.value - before.top1.value)} points"
        keys.append(
            Key(
                "Accuracy",
                f"{numbers.fixed(after.top1.value)} %",
                f"95 % interval {bounds(after.top1)}" if bounds(after.top1) else "",
                f"{numbers.fixed(before.top1.value)} %",
                change,
                after.top1.value > before.top1.value,
            )
        )
    if after.size_bytes and before.size_bytes:
        keys.append(
            Key(
                "Size",
                numbers.size(after.size_bytes),
                f"{numbers.count(after.size_bytes)} bytes",
                numbers.size(before.size_bytes),
                *_times(
                    before.size_bytes / after.size_bytes, "smaller", "larger", "same size", 0.005
                ),
            )
        )
    if after.latency and before.latency:
        low_high = bounds(after.latency, 3)
        keys.append(
            Key(
                "Latency",
                f"{numbers.significant(after.latency.value)} ms",
                f"10th to 90th percentile {low_high}" if low_high else "",
                f"{numbers.significant(before.latency.value)} ms",
                *_times(
                    before.latency.value / after.latency.value, "faster", "slower", "as fast", 0.05
                ),
            )
        )
    return keys


def _times(ratio: float, better: str, worse: str, same: str, margin: float) -> tuple[str, bool]:
    """A ratio in words, and whether it is a gain; ``same`` for a ratio within ``margin`` of 1."""
    if abs(ratio - 1) < margin:
        return same, False
    if ratio > 1:
        return f"{numbers.times(ratio, 2 if ratio >= 1.095 else 3)} {better}", True
    return f"{numbers.times(1 / ratio, 2 if ratio <= 0.91 else 3)} {worse}", False


class Bar(NamedTuple):
    """A layer in the drawing of the network.

    Attributes:
        width: Channels before, in percent of the widest layer.
        kept: Channels after, in percent of those before.
        heat: Time after, in percent of the slowest layer.
        words: Tooltip with all facts.
    """

    layer: Layer
    width: float
    kept: float
    heat: float
    words: str


class Block(NamedTuple):
    """A block of the drawing, with sums over its layers."""

    name: str
    bars: list[Bar]
    channels_before: int
    channels_after: int
    microseconds: float | None


def block_rows(layers: Iterable[Layer]) -> list[Block]:
    """Layers grouped by block, in order."""
    every = list(layers)
    widest = max((layer.channels_before for layer in every), default=1)
    slowest = max((layer.microseconds_after or 0 for layer in every), default=0) or 1
    blocks = []
    for name, group in groupby(every, lambda layer: layer.block):
        own = list(group)
        times = [layer.microseconds_after for layer in own if layer.microseconds_after is not None]
        blocks.append(
            Block(
                name,
                [_bar(layer, widest, slowest) for layer in own],
                sum(layer.channels_before for layer in own),
                sum(layer.channels_after for layer in own),
                sum(times) if times else None,
            )
        )
    return blocks


def _bar(layer: Layer, widest: int, slowest: float) -> Bar:
    shape = " × ".join(map(str, layer.output))
    words = [
        f"{layer.label} ({layer.name})",
        f"{layer.channels_after:,} of {layer.channels_before:,} channels",
        f"output {shape}" if shape else "",
        f"{layer.bits} bits" if layer.channels_after else "removed",
    ]
    if layer.microseconds_after is not None:
        was = layer.microseconds_before
        words.append(
            f"{numbers.significant(layer.microseconds_after)} µs"
            + (f", {numbers.significant(was)} µs before" if was is not None else "")
        )
    return Bar(
        layer,
        # The square root keeps narrow layers visible beside wide ones.
        round(100 * (layer.channels_before / widest) ** 0.5, 2),
        round(100 * layer.channels_after / layer.channels_before, 2),
        round(100 * (layer.microseconds_after or 0) / slowest),
        "; ".join(filter(None, words)),
    )


class Confusion(NamedTuple):
    """A confusion with different counts in the two networks."""

    label: str
    answer: str
    before: int
    after: int


class Confusions(NamedTuple):
    """The shown part of the confusion matrices.

    Attributes:
        matrix: Label, counts after and counts before; None for too many classes.
        largest: Confusions with the largest change.
    """

    matrix: list[tuple[str, list[tuple[int, int, int]]]] | None
    largest: list[Confusion]


def confusions(images: ImageChanges | None) -> Confusions:
    """Rows of (after, before, percent of the row), and the largest changes."""
    if images is None:
        return Confusions(None, [])
    pairs = list(zip(images.confusion_before, images.confusion_after, strict=True))
    matrix = None
    if len(images.classes) <= MATRIX:
        matrix = [
            (
                name,
                [
                    (a, b, round(100 * a / max(sum(after), 1)))
                    for b, a in zip(before, after, strict=True)
                ],
            )
            for name, (before, after) in zip(images.classes, pairs, strict=True)
        ]
    changed = [
        Confusion(images.classes[i], images.classes[j], before[j], after[j])
        for i, (before, after) in enumerate(pairs)
        for j in range(len(images.classes))
        if i != j and before[j] != after[j]
    ]
    changed.sort(key=lambda c: -abs(c.after - c.before))
    return Confusions(matrix, changed[:6])


def _cells(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[int, int, int]]:
    total = max(sum(after), 1)
    return [(now, was, round(100 * now / total)) for was, now in zip(before, after, strict=True)]


class Cost(NamedTuple):
    """Latency of one image and memory of one file."""

    name: str
    latency: str
    percentiles: str
    memory: str


def cost_rows(variants: Iterable[Variant]) -> list[Cost]:
    """Return a row for each timed file; nothing if no memory was measured."""
    rows = [
        Cost(
            variant.name,
            numbers.significant(variant.latency.value),
            bounds(variant.latency, 3),
            numbers.size(1e6 * variant.memory_mb) if variant.memory_mb else numbers.NONE,
        )
        for variant in variants
        if variant.latency and not variant.decodes_to
    ]
    return rows if any(row.memory != numbers.NONE for row in rows) else []


def stage_rows(stages: Iterable[tuple[str, float]]) -> list[tuple[str, float, float]]:
    """Name, seconds and percent of the longest stage, for each stage."""
    every = list(stages)
    longest = max((seconds for _, seconds in every), default=0.0) or 1.0
    return [(name, seconds, round(100 * seconds / longest, 2)) for name, seconds in every]
