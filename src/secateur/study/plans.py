"""What the three tables consist of: their rows, and each quantity as published and as measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from secateur.report import numbers
from secateur.study import measured
from secateur.study.cells import Group
from secateur.study.formats import NOTHING, Entry
from secateur.study.published import (
    DATASETS,
    OVERFITTING,
    PRUNING,
    QUANTIZATION,
    Printed,
    PublishedRow,
)

REFERENCE = "reference"


class Measurement(NamedTuple):
    """Where a measured number comes from: the group, its variant, and the machine of latencies."""

    group: Group
    variant: str
    machine: str


class Publication(NamedTuple):
    """A published row, with the reference and the overfitted network of the same table."""

    row: PublishedRow
    reference: PublishedRow | None
    overfitted: PublishedRow | None = None


@dataclass(frozen=True)
class Quantity:
    """One quantity of a table.

    Attributes:
        key: Its name in CSV.
        heading: Its name for people, with its unit.
        published: From a published row to its entry; None where no publication has it.
        measured: From a measurement to its entry.
        column: Field of a published row whose contradictions mark the entry.
        on_machine: Whether the number depends on the machine.
        only: The measured variants that have it; empty for all.
    """

    key: str
    heading: str
    published: Callable[[Publication], Entry] | None
    measured: Callable[[Measurement], Entry]
    column: str = ""
    on_machine: bool = False
    only: tuple[str, ...] = ()


class Line(NamedTuple):
    """One row for each network and data set: its name, the published and the measured variant."""

    name: str
    published: str | None
    measured: str


class Plan(NamedTuple):
    """Contents of a table."""

    name: str
    title: str
    tables: tuple[int, int]
    lines: tuple[Line, ...]
    quantities: tuple[Quantity, ...]
    datasets: tuple[str, ...]
    notes: tuple[str, ...]
    overfitting: bool = False


# ---- published entries


def _as_printed(number: Printed | None) -> Entry:
    return Entry(number.text, number.value) if number else NOTHING


def _column(name: str) -> Callable[[Publication], Entry]:
    return lambda publication: _as_printed(getattr(publication.row, name))


def _printed_difference(first: PublishedRow | None, second: PublishedRow | None) -> Entry:
    if first is None or second is None or first == second:
        return NOTHING
    if first.top1_percent is None or second.top1_percent is None:
        return NOTHING
    value = round(first.top1_percent.value - second.top1_percent.value, 9)
    return Entry(numbers.signed(value), value)


def _printed_rate(publication: Publication, column: str) -> Entry:
    """Ratio of the reference to the variant, from two printed numbers."""
    before = getattr(publication.reference, column) if publication.reference else None
    rest = getattr(publication.row, column)
    if before is None or rest is None or publication.row == publication.reference:
        return NOTHING
    return Entry(numbers.times(before.value / rest.value), before.value / rest.value)


# ---- the three tables


_SMALLER = ("pruned", "quantized", "packed")
_OVER = ("overfitted", "overfitted-pruned", "overfitted-random", "overfitted-dense")

_TOP1 = Quantity(
    "top1_percent",
    "Top-1, %",
    _column("top1_percent"),
    lambda m: measured.accuracy(m.group, m.variant),
    "top1_percent",
)
_DROP = Quantity(
    "top1_drop_points",
    "Drop, points",
    lambda publication: _printed_difference(publication.reference, publication.row),
    lambda m: measured.difference(m.group, REFERENCE, m.variant),
    only=(*_SMALLER, *_OVER),
)
_PARAMETERS = Quantity(
    "parameters",
    "Parameters",
    _column("parameters"),
    lambda m: measured.mean(m.group, m.variant, "parameters"),
    "parameters",
)
_BY_PARAMETERS = Quantity(
    "compression_by_parameters",
    "Compression by parameters",
    _column("compression_rate"),
    lambda m: measured.rate(m.group, m.variant, "parameters"),
    "compression_rate",
    only=_SMALLER,
)
_BY_BYTES = Quantity(
    "compression_by_bytes",
    "Compression by file",
    None,
    lambda m: measured.rate(m.group, m.variant, "size_bytes"),
    only=_SMALLER,
)
_SIZE = Quantity(
    "size_mb",
    "Size, MB",
    _column("size_mb"),
    lambda m: measured.mean(m.group, m.variant, "size_bytes", numbers.significant, 1e-6),
    "size_mb",
)
_SIZE_RATE = replace(_BY_BYTES, published=lambda publication: _printed_rate(publication, "size_mb"))
_LATENCY = Quantity(
    "latency_ms",
    "Latency, ms",
    _column("latency_ms"),
    lambda m: measured.latency(*m),
    "latency_ms",
    on_machine=True,
)
_SPEED_UP = Quantity(
    "speed_up",
    "Speed-up",
    lambda publication: _printed_rate(publication, "latency_ms"),
    lambda m: measured.speed_up(*m),
    on_machine=True,
    only=_SMALLER,
)


_GAIN = Quantity(
    "gain_over_overfitted_points",
    "Gain over overfitted, points",
    lambda publication: (
        _printed_difference(publication.row, publication.overfitted)
        if publication.row.variant == "pruned"
        else NOTHING
    ),
    lambda m: measured.difference(m.group, m.variant, "overfitted"),
    only=_OVER[1:],
)


def _gain(control: str) -> Quantity:
    return Quantity(
        f"gain_over_{control}_points",
        f"Gain over {control}, points",
        None,
        lambda m: measured.difference(m.group, m.variant, f"overfitted-{control}"),
        only=("overfitted-pruned",),
    )


def _nats(metric: str, heading: str) -> Quantity:
    return Quantity(
        metric,
        heading,
        None,
        lambda m: measured.mean(m.group, m.variant, metric, numbers.significant),
        only=_OVER,
    )


_TRAIN_TOP1 = Quantity(
    "train_top1_percent",
    "Top-1 in training, %",
    None,
    lambda m: measured.mean(m.group, m.variant, "train_top1_percent", numbers.fixed),
    only=_OVER,
)

_ABOUT_MEASURED = (
    "A measured number has its bounds in brackets and its number of seeds. The bounds of an "
    "accuracy or of a difference of accuracies are a 95 % interval over seeds and test images; the "
    "bounds of any other mean are the minimum and maximum over seeds."
)
_ABOUT_DROPS = (
    "A drop is the reference minus the variant; a positive drop is a loss. The published drop "
    "follows from the printed accuracies, the measured drop is paired on the same images."
)
_ABOUT_COMPRESSION = (
    "The publications print compression by parameters. Compression by file is the bytes of the "
    "reference's file over the bytes of the variant's."
)
_ABOUT_LATENCY = (
    "Latency is that of one image, measured on one machine: the median of the runs' medians; the "
    "bounds are the smallest 10th and the largest 90th percentile of the runs. The publications "
    "state neither batch size nor processor. Speed-up is the reference's latency over "
    "the variant's."
)
_ABOUT_SIZES = (
    "A measured MB is 10^6 bytes. The published quantized networks are the pruned ones; the "
    "published reference is the unpruned network in float."
)
_ABOUT_GAINS = (
    "A gain is the accuracy of the pruned network, or of its control, minus the accuracy of "
    "another network on the same images; a positive gain favors pruning. The loss gap is the test "
    "loss minus the training loss."
)

PLANS = (
    Plan(
        "pruning",
        "Pruning (Table 1 of the paper, Table 2 of the report)",
        PRUNING,
        (Line("reference", REFERENCE, REFERENCE), Line("pruned", "pruned", "pruned")),
        (_TOP1, _DROP, _PARAMETERS, _BY_PARAMETERS, _BY_BYTES),
        DATASETS,
        (_ABOUT_MEASURED, _ABOUT_DROPS, _ABOUT_COMPRESSION),
    ),
    Plan(
        "quantization",
        "Quantization of the pruned networks (Table 3 of the paper, Table 4 of the report)",
        QUANTIZATION,
        (
            Line("reference", REFERENCE, REFERENCE),
            Line("quantized", "quantized", "quantized"),
            Line("packed", None, "packed"),
        ),
        (_TOP1, _DROP, _SIZE, _SIZE_RATE, _LATENCY, _SPEED_UP),
        DATASETS,
        (_ABOUT_MEASURED, _ABOUT_DROPS, _ABOUT_SIZES, _ABOUT_LATENCY),
    ),
    Plan(
        "overfitting",
        "Networks trained to overfit, then pruned (Table 5 of the paper, Table 6 of the report)",
        OVERFITTING,
        (
            Line("reference", REFERENCE, REFERENCE),
            Line("overfitted", "overfitted", "overfitted"),
            Line("overfitted, pruned", "pruned", "overfitted-pruned"),
            Line("control: random", None, "overfitted-random"),
            Line("control: dense", None, "overfitted-dense"),
        ),
        (
            _TOP1,
            _DROP,
            _PARAMETERS,
            _GAIN,
            _gain("random"),
            _gain("dense"),
            _TRAIN_TOP1,
            _nats("train_loss_nats", "Loss in training, nats"),
            _nats("test_loss_nats", "Loss on test, nats"),
            _nats("loss_gap_nats", "Loss gap, nats"),
        ),
        ("fashionmnist",),
        (_ABOUT_MEASURED, _ABOUT_DROPS, _ABOUT_GAINS),
        overfitting=True,
    ),
)
