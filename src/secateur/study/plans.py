"""What the three tables are made of: rows, and quantities as published and as ours."""

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


class Ours(NamedTuple):
    """Where a number of ours comes from: the group, its variant, and the machine of latencies."""

    group: Group
    variant: str
    machine: str


class Theirs(NamedTuple):
    """A published row, and the reference of the same table."""

    row: PublishedRow
    reference: PublishedRow | None
    overfitted: PublishedRow | None = None


@dataclass(frozen=True)
class Quantity:
    """One quantity of a table.

    Attributes:
        key: Its name in CSV.
        heading: Its name for people, with its unit.
        printed: From a published row to its entry; None where no publication has it.
        ours: From where ours is to its entry.
        column: Field of a published row whose contradictions mark the entry.
        on_machine: Whether it is a number of one machine.
        only: The variants of ours that have it; empty for all.
    """

    key: str
    heading: str
    printed: Callable[[Theirs], Entry] | None
    ours: Callable[[Ours], Entry]
    column: str = ""
    on_machine: bool = False
    only: tuple[str, ...] = ()


class Line(NamedTuple):
    """One row for each network and data set: its name, the published variant, and ours."""

    name: str
    published: str | None
    ours: str


class Plan(NamedTuple):
    """What a table is made of."""

    name: str
    title: str
    tables: tuple[int, int]
    lines: tuple[Line, ...]
    quantities: tuple[Quantity, ...]
    datasets: tuple[str, ...]
    notes: tuple[str, ...]
    overfitting: bool = False


# ---- what is printed


def _as_printed(number: Printed | None) -> Entry:
    return Entry(number.text, number.value) if number else NOTHING


def _column(name: str) -> Callable[[Theirs], Entry]:
    return lambda theirs: _as_printed(getattr(theirs.row, name))


def _printed_difference(first: PublishedRow | None, second: PublishedRow | None) -> Entry:
    if first is None or second is None or first == second:
        return NOTHING
    if first.top1_percent is None or second.top1_percent is None:
        return NOTHING
    value = round(first.top1_percent.value - second.top1_percent.value, 9)
    return Entry(numbers.signed(value), value)


def _printed_rate(theirs: Theirs, column: str) -> Entry:
    """How many times less than the reference, from two printed numbers."""
    before = getattr(theirs.reference, column) if theirs.reference else None
    rest = getattr(theirs.row, column)
    if before is None or rest is None or theirs.row == theirs.reference:
        return NOTHING
    return Entry(numbers.times(before.value / rest.value), before.value / rest.value)


# ---- the three tables


_SMALLER = ("pruned", "quantized", "packed")
_OVER = ("overfitted", "overfitted-pruned", "overfitted-random", "overfitted-dense")

_TOP1 = Quantity(
    "top1_percent",
    "Top-1, %",
    _column("top1_percent"),
    lambda ours: measured.accuracy(ours.group, ours.variant),
    "top1_percent",
)
_DROP = Quantity(
    "top1_drop_points",
    "Drop, points",
    lambda theirs: _printed_difference(theirs.reference, theirs.row),
    lambda ours: measured.difference(ours.group, REFERENCE, ours.variant),
    only=(*_SMALLER, *_OVER),
)
_PARAMETERS = Quantity(
    "parameters",
    "Parameters",
    _column("parameters"),
    lambda ours: measured.mean(ours.group, ours.variant, "parameters"),
    "parameters",
)
_BY_PARAMETERS = Quantity(
    "compression_by_parameters",
    "Compression by parameters",
    _column("compression_rate"),
    lambda ours: measured.rate(ours.group, ours.variant, "parameters"),
    "compression_rate",
    only=_SMALLER,
)
_BY_BYTES = Quantity(
    "compression_by_bytes",
    "Compression by file",
    None,
    lambda ours: measured.rate(ours.group, ours.variant, "size_bytes"),
    only=_SMALLER,
)
_SIZE = Quantity(
    "size_mb",
    "Size, MB",
    _column("size_mb"),
    lambda ours: measured.mean(ours.group, ours.variant, "size_bytes", numbers.significant, 1e-6),
    "size_mb",
)
_SIZE_RATE = replace(_BY_BYTES, printed=lambda theirs: _printed_rate(theirs, "size_mb"))
_LATENCY = Quantity(
    "latency_ms",
    "Latency, ms",
    _column("latency_ms"),
    lambda ours: measured.latency(*ours),
    "latency_ms",
    on_machine=True,
)
_SPEED_UP = Quantity(
    "speed_up",
    "Speed-up",
    lambda theirs: _printed_rate(theirs, "latency_ms"),
    lambda ours: measured.speed_up(*ours),
    on_machine=True,
    only=_SMALLER,
)


_GAIN = Quantity(
    "gain_over_overfitted_points",
    "Gain over overfitted, points",
    lambda theirs: (
        _printed_difference(theirs.row, theirs.overfitted)
        if theirs.row.variant == "pruned"
        else NOTHING
    ),
    lambda ours: measured.difference(ours.group, ours.variant, "overfitted"),
    only=_OVER[1:],
)


def _gain(control: str) -> Quantity:
    return Quantity(
        f"gain_over_{control}_points",
        f"Gain over {control}, points",
        None,
        lambda ours: measured.difference(ours.group, ours.variant, f"overfitted-{control}"),
        only=("overfitted-pruned",),
    )


def _nats(metric: str, heading: str) -> Quantity:
    return Quantity(
        metric,
        heading,
        None,
        lambda ours: measured.mean(ours.group, ours.variant, metric, numbers.significant),
        only=_OVER,
    )


_TRAIN_TOP1 = Quantity(
    "train_top1_percent",
    "Top-1 in training, %",
    None,
    lambda ours: measured.mean(ours.group, ours.variant, "train_top1_percent", numbers.fixed),
    only=_OVER,
)

_ABOUT_OURS = (
    "Ours stands with bounds in brackets and how many seeds it is of. Of an accuracy or a "
    "difference of accuracies the bounds are a 95 % interval over seeds and test images; of "
    "anything else the least and the greatest of the seeds, around their mean."
)
_ABOUT_DROPS = (
    "A drop is reference minus variant, so a positive one is a loss; theirs follows from what they "
    "print, ours is paired on the same images."
)
_ABOUT_COMPRESSION = (
    "Compression by parameters is what the publications print; by file it is bytes of the "
    "reference's file over bytes of the variant's."
)
_ABOUT_LATENCY = (
    "Latency is of one image: the median of our runs' medians, from their least 10th to their "
    "greatest 90th percentile, on one machine; machines are never mixed. The publications name "
    "neither batch nor processor. Speed-up is the reference's latency over the variant's."
)
_ABOUT_SIZES = (
    "MB of ours are 10^6 bytes. Their quantized networks are the pruned ones, their reference is "
    "the unpruned one in float."
)
_ABOUT_GAINS = (
    "A gain is the accuracy of the pruned network, or of its control, minus that of another on the "
    "same images, so a positive one is for pruning. The loss gap is test loss minus training loss."
)

PLANS = (
    Plan(
        "pruning",
        "Pruning (Table 1 of the paper, Table 2 of the report)",
        PRUNING,
        (Line("reference", REFERENCE, REFERENCE), Line("pruned", "pruned", "pruned")),
        (_TOP1, _DROP, _PARAMETERS, _BY_PARAMETERS, _BY_BYTES),
        DATASETS,
        (_ABOUT_OURS, _ABOUT_DROPS, _ABOUT_COMPRESSION),
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
        (_ABOUT_OURS, _ABOUT_DROPS, _ABOUT_SIZES, _ABOUT_LATENCY),
    ),
    Plan(
        "overfitting",
        "Networks made to overfit, then pruned (Table 5 of the paper, Table 6 of the report)",
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
        (_ABOUT_OURS, _ABOUT_DROPS, _ABOUT_GAINS),
        overfitting=True,
    ),
)
