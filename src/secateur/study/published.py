"""The printed numbers of two publications, and their contradictions.

``results.csv`` holds the tables of arXiv 2001.04850 (``paper``: tables 1, 3, 5) and of a report
that reproduces it (``report``: tables 2, 4, 6); ``thresholds.csv`` holds the chosen fraction of
each network.
"""

from __future__ import annotations

import csv
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib import resources
from typing import NamedTuple

from secateur.datasets import FACTS
from secateur.recipe import Recipe, load_recipe

SOURCES = ("paper", "report")
DATASETS = ("cifar10", "fashionmnist")
NETWORKS = ("mobilenet_v2", "shufflenet_v2_x1_0", "alexnet")
TITLES = {
    "mobilenet_v2": "MobileNetV2",
    "shufflenet_v2_x1_0": "ShuffleNetV2",
    "alexnet": "AlexNet",
    **{name: FACTS[name].title for name in DATASETS},
}
"""Titles of networks and data sets."""

PRUNING, QUANTIZATION, OVERFITTING = (1, 2), (3, 4), (5, 6)
"""Tables of the paper and of the report on the same question."""

_SUFFIXES = {"K": Decimal(1000), "M": Decimal(1000000)}
_MIB = Decimal(2**20) / 10**6


class Range(NamedTuple):
    """The interval of a number that was rounded for print."""

    low: Decimal
    high: Decimal

    def meets(self, other: Range) -> bool:
        """Whether the two intervals overlap."""
        return self.low <= other.high and other.low <= self.high

    def over(self, other: Range) -> Range:
        """The interval of ratios of two positive numbers."""
        return Range(self.low / other.high, self.high / other.low)

    def times(self, factor: Decimal) -> Range:
        """The interval times a positive ``factor``."""
        return Range(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Printed:
    """A number as printed: ``671K``, ``2.2M``, ``91.53``.

    Attributes:
        text: The printed text.
        value: Its value; ``671K`` is 671,000.
        range: Interval of the number before rounding to the printed digits.
    """

    text: str
    value: float
    range: Range

    @classmethod
    def of(cls, text: str) -> Printed:
        """Read a number, with K for thousands or M for millions.

        Raises:
            ValueError: The text is not a positive number.
        """
        scale = _SUFFIXES.get(text[-1:], Decimal(1))
        try:
            digits = Decimal(text[:-1] if text[-1:] in _SUFFIXES else text)
        except InvalidOperation as error:
            raise ValueError(f"not a printed number: {text!r}") from error
        exponent = digits.as_tuple().exponent
        if not isinstance(exponent, int) or digits <= 0:
            raise ValueError(f"not a printed number above zero: {text!r}")
        half = Decimal(1).scaleb(exponent) / 2
        bounds = Range((digits - half) * scale, (digits + half) * scale)
        return cls(text, float(digits * scale), bounds)


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table; None for columns that the table lacks.

    Attributes:
        table: 1 to 6.
        source: ``paper`` or ``report``.
        dataset: ``cifar10`` or ``fashionmnist``.
        network: One of ``NETWORKS``.
        variant: ``reference``, ``pruned``, ``quantized`` or ``overfitted``.
        top1_percent: Accuracy on the test images.
        parameters: Remaining parameters.
        compression_rate: Compression by parameters, against the reference.
        size_mb: Size of the file in megabytes of unspecified kind.
        latency_ms: Latency at an unspecified batch size and processor.
    """

    table: int
    source: str
    dataset: str
    network: str
    variant: str
    top1_percent: Printed | None
    parameters: Printed | None
    compression_rate: Printed | None
    size_mb: Printed | None
    latency_ms: Printed | None

    @property
    def name(self) -> str:
        """``MobileNetV2 on CIFAR-10, pruned``."""
        return f"{TITLES[self.network]} on {TITLES[self.dataset]}, {self.variant}"


@dataclass(frozen=True)
class Contradiction:
    """A published number that contradicts another one.

    Attributes:
        kind: ``compression_rate``, ``reference_accuracy`` or ``quantized_size``.
        column: Contradicted field of the rows.
        rows: The rows concerned.
        printed: The printed number.
        follows: The number that follows from others.
    """

    kind: str
    column: str
    rows: tuple[PublishedRow, ...]
    printed: str
    follows: str

    @property
    def source(self) -> str:
        """``paper`` or ``report``."""
        return self.rows[0].source

    @property
    def tables(self) -> tuple[int, ...]:
        """Tables of the rows, increasing."""
        return tuple(sorted({row.table for row in self.rows}))

    @property
    def row(self) -> str:
        """Title of the rows."""
        return self.rows[0].name

    def __str__(self) -> str:
        """The contradiction in one sentence."""
        tables = " and ".join(map(str, self.tables))
        where = f"{self.source.capitalize()}, Table{'s' * (len(self.tables) > 1)} {tables}"
        return f"{where}, {self.row}: prints {self.printed}; {self.follows}."


@functools.cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All published rows, in the order of the tables."""
    return tuple(_row(row) for row in _read("results.csv"))


def _row(row: dict[str, str]) -> PublishedRow:
    def number(column: str) -> Printed | None:
        return Printed.of(row[column]) if row[column] else None

    return PublishedRow(
        table=int(row["table"]),
        source=row["source"],
        dataset=row["dataset"],
        network=row["network"],
        variant=row["variant"],
        top1_percent=number("top1_percent"),
        parameters=number("parameters"),
        compression_rate=number("compression_rate"),
        size_mb=number("size_mb"),
        latency_ms=number("latency_ms"),
    )


@functools.cache
def thresholds() -> dict[tuple[str, str], float]:
    """From (dataset, network) to the published fraction, in [0, 1)."""
    return {
        (row["dataset"], row["network"]): float(row["fraction"]) for row in _read("thresholds.csv")
    }


def _read(name: str) -> Iterable[dict[str, str]]:
    file = resources.files("secateur.study") / name
    return csv.DictReader(file.read_text(encoding="utf-8").splitlines())


def row_of(
    tables: tuple[int, int], source: str, dataset: str, network: str, variant: str
) -> PublishedRow | None:
    """The row of one source in a pair of tables, or None."""
    key = (source, dataset, network, variant)
    for row in published_rows():
        if row.table in tables and (row.source, row.dataset, row.network, row.variant) == key:
            return row
    return None


@functools.cache
def published_recipe(dataset: str, network: str) -> Recipe:
    """The built-in recipe that follows the publication; its geometry is the published one."""
    return load_recipe(recipe_name(network, dataset, "paper"))


def recipe_name(network: str, dataset: str, preset: str) -> str:
    """The name of a built-in recipe.

    Networks have torchvision's names. Names of recipes, and of the folders of their runs and cells,
    omit the width ``_x1_0``: stored results have them, so that they do not change.

    Example:
        >>> recipe_name("shufflenet_v2_x1_0", "cifar10", "paper")
        'shufflenet_v2-cifar10-paper'
    """
    return f"{network.removesuffix('_x1_0')}-{dataset}-{preset}"


# ---- contradictions, computed from printed numbers


def contradictions(rows: Iterable[PublishedRow] | None = None) -> list[Contradiction]:
    """List contradictions of published rows beyond the rounding for print.

    A number printed as 2.2M was between 2.15 and 2.25 million; anything that follows from a number
    in this interval is not a contradiction.

    Args:
        rows: Rows to check; by default the published ones.
    """
    every = list(published_rows() if rows is None else rows)
    return [*_wrong_rates(every), *_two_references(every), *_sizes_of_the_unpruned(every)]


def _wrong_rates(rows: list[PublishedRow]) -> Iterator[Contradiction]:
    """Compression rates that are not the ratio of the printed parameters."""
    references = {_place(row): row for row in rows if row.variant == "reference"}
    for row in rows:
        unpruned = references.get(_place(row))
        if not (unpruned and row.compression_rate and row.parameters and unpruned.parameters):
            continue
        ratio = unpruned.parameters.range.over(row.parameters.range)
        if not ratio.meets(row.compression_rate.range):
            yield Contradiction(
                "compression_rate",
                "compression_rate",
                (row,),
                f"a compression rate of {row.compression_rate.text}",
                f"{unpruned.parameters.text} over {row.parameters.text} parameters is "
                + _between(ratio, 2),
            )


def _two_references(rows: list[PublishedRow]) -> Iterator[Contradiction]:
    """Networks with several reference accuracies on one data set in one source."""
    groups: dict[tuple[str, str, str], list[PublishedRow]] = defaultdict(list)
    for row in rows:
        if row.variant == "reference" and row.top1_percent:
            groups[row.source, row.dataset, row.network].append(row)
    for same in groups.values():
        by_text = {row.top1_percent.text: row for row in same if row.top1_percent}
        ranges = [row.top1_percent.range for row in by_text.values() if row.top1_percent]
        if any(not one.meets(other) for one in ranges for other in ranges):
            yield Contradiction(
                "reference_accuracy",
                "top1_percent",
                tuple(same),
                " and ".join(f"{text} %" for text in by_text),
                "one network has one reference accuracy",
            )


def _sizes_of_the_unpruned(rows: list[PublishedRow]) -> Iterator[Contradiction]:
    """Files of quantized pruned networks with one byte for each *unpruned* parameter."""
    pruning = [row for row in rows if row.table in PRUNING and row.parameters]
    counted = {(row.source, row.dataset, row.network, row.variant): row for row in pruning}
    for row in rows:
        where = (row.source, row.dataset, row.network)
        reference, rest = (counted.get((*where, variant)) for variant in ("reference", "pruned"))
        if row.variant != "quantized" or not (row.size_mb and reference and rest):
            continue
        assert reference.parameters is not None
        assert rest.parameters is not None
        if _a_byte_each(row.size_mb, reference.parameters) and not _a_byte_each(
            row.size_mb, rest.parameters
        ):
            yield Contradiction(
                "quantized_size",
                "size_mb",
                (row,),
                f"{row.size_mb.text} MB for the quantized pruned network",
                f"at one byte each that is its {reference.parameters.text} unpruned parameters "
                f"({_between(_mib(reference.parameters), 1)} MiB), not the {rest.parameters.text} "
                f"that pruning leaves ({_between(_mib(rest.parameters), 1)} MiB)",
            )


def _a_byte_each(size: Printed, parameters: Printed) -> bool:
    """Whether a size in megabytes, of 10^6 or 2^20 bytes, is one byte for each parameter."""
    millions = parameters.range.times(Decimal(1).scaleb(-6))
    return size.range.meets(millions) or size.range.times(_MIB).meets(millions)


def _mib(parameters: Printed) -> Range:
    return parameters.range.times(1 / (_MIB * 10**6))


def _place(row: PublishedRow) -> tuple[int, str, str]:
    return row.table, row.dataset, row.network


def _between(bounds: Range, digits: int) -> str:
    return f"{bounds.low:.{digits}f} to {bounds.high:.{digits}f}"
