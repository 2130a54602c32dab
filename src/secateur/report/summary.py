"""The summary of a run: one sentence and one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from secateur.records import Record
from secateur.report import numbers
from secateur.report.contents import Changes, Estimate, Variant
from secateur.report.findings import SINGLE, VARIANTS, Findings
from secateur.report.numbers import NONE


class Cell(NamedTuple):
    """A number, with a smaller line below it."""

    text: str
    note: str = ""


HEADINGS = (
    Cell("Variant"),
    Cell("Top-1 %", "95 % interval"),
    Cell("Drop, points", "paired, 95 %"),
    Cell("Parameters", "non-zero"),
    Cell("MACs"),
    Cell("Size"),
    Cell("Compression", "by file"),
    Cell("Latency, ms", "p10 to p90"),
    Cell("Speed-up", "by median"),
)

NAMES = {
    "top1_percent": "top-1",
    "top1_drop_points": "drop",
    "parameters": "parameters",
    "nonzero_parameters": "non-zero parameters",
    "macs": "MACs",
    "size_bytes": "size",
    "latency_ms": "latency",
    "parity_percent": "agreement with the simulation",
}


@dataclass(frozen=True)
class SummaryTable:
    """The table of variants for a terminal, which :mod:`rich` prints.

    Variants are rows if the terminal is wide enough, else columns.
    """

    rows: list[tuple[Cell, ...]]

    WIDE = 112

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table for the width."""
        if not self.rows:
            yield Text("nothing is measured on the test images yet")
            return
        grid = [HEADINGS, *self.rows]
        if options.max_width < self.WIDE:
            grid = list(zip(*grid, strict=True))
        table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False, header_style="")
        for index, cell in enumerate(grid[0]):
            heading = _lines(cell._replace(note=cell.note or " "), "bold")  # all with two lines
            table.add_column(heading, justify="right" if index else "left")
        for row in grid[1:]:
            table.add_row(*(_lines(cell, "") for cell in row))
        yield table


def summary_table(records: list[Record]) -> SummaryTable:
    """The table of variants for a terminal: accuracy, size and latency with intervals.

    Compression and speed-up are computed from bytes and medians. Without measurements, a line says
    so.

    Raises:
        StoreError: See :meth:`secateur.report.findings.Findings.of`.
    """
    return SummaryTable(summary_rows(variants_of(Findings.of(records))))


def _lines(cell: Cell, style: str) -> Text:
    text = Text(cell.text, style, no_wrap=True)
    return text.append(f"\n{cell.note}", "dim not bold") if cell.note else text


def variants_of(findings: Findings, changes: Changes | None = None) -> list[Variant]:
    """Measurements of each variant, in the order of the chain.

    Args:
        findings: Findings of one run.
        changes: Timings and memory, which are not in the records.
    """
    return [_variant(findings, name, changes or Changes()) for name in findings.variants]


def _variant(findings: Findings, name: str, changes: Changes) -> Variant:
    def value(metric: str) -> float | None:
        record = findings.get(name, metric)
        return None if record is None else record.value

    records = [findings.get(name, metric) for metric in SINGLE]
    source = next((r.at["decoded_to"] for r in records if r and "decoded_to" in r.at), "")
    return Variant(
        name=name,
        top1=estimate(findings.get(name, "top1_percent")),
        drop=estimate(findings.get(name, "top1_drop_points")),
        parameters=value("parameters"),
        nonzero_parameters=value("nonzero_parameters"),
        macs=value("macs"),
        size_bytes=value("size_bytes"),
        latency=estimate(findings.get(name, "latency_ms")),
        samples_ms=changes.samples_ms.get(name, ()),
        memory_mb=changes.memory_mb.get(name),
        decodes_to=str(source),
    )


def estimate(record: Record | None) -> Estimate | None:
    """A record's value and bounds."""
    if record is None:
        return None
    return Estimate(value=record.value, low=record.low, high=record.high, n=record.n)


def summary_rows(variants: Sequence[Variant]) -> list[tuple[Cell, ...]]:
    """A row of cells for each variant, in the order of ``HEADINGS``, the reference first."""
    return [_row(variants[0], variant) for variant in variants]


def _row(reference: Variant, variant: Variant) -> tuple[Cell, ...]:
    latency = variant.latency
    before, after = (of.latency.value if of.latency else None for of in (reference, variant))
    cells = (
        Cell(variant.name),
        _with_bounds(variant.top1, numbers.fixed, bounds),
        _with_bounds(variant.drop, numbers.signed, signed_bounds),
        Cell(_count(variant.parameters), _count(variant.nonzero_parameters, "")),
        Cell(NONE if variant.macs is None else numbers.short_count(variant.macs)),
        Cell(NONE if variant.size_bytes is None else numbers.size(variant.size_bytes)),
        _gain(reference.size_bytes, variant.size_bytes, variant is reference),
        _with_bounds(latency, numbers.significant, _percentiles),
        _gain(before, after, variant is reference),
    )
    if variant.decodes_to:  # the same network as in the row above, with its bounds
        return tuple(Cell(cell.text) for cell in cells)
    return cells


def _count(value: float | None, none: str = NONE) -> str:
    return none if value is None else numbers.count(value)


def _with_bounds(
    value: Estimate | None, form: Callable[[float], str], note: Callable[[Estimate], str]
) -> Cell:
    return Cell(NONE) if value is None else Cell(form(value.value), note(value))


def _percentiles(latency: Estimate) -> str:
    if latency.low is None or latency.high is None:
        return ""
    return f"{numbers.significant(latency.low)} to {numbers.significant(latency.high)}"


def _gain(before: float | None, after: float | None, is_reference: bool) -> Cell:
    if not before or not after or is_reference:
        return Cell(NONE)
    return Cell(numbers.times(before / after))


def bounds(record: Record | Estimate | None, digits: int = 2) -> str:
    """``91.76 to 92.82``, or empty without bounds."""
    if record is None or record.low is None or record.high is None:
        return ""
    return f"{numbers.fixed(record.low, digits)} to {numbers.fixed(record.high, digits)}"


def signed_bounds(record: Record | Estimate | None) -> str:
    """``−0.11 to +0.35``, or empty without bounds."""
    if record is None or record.low is None or record.high is None:
        return ""
    return f"{numbers.signed(record.low)} to {numbers.signed(record.high)}"


# ---- the sentence


class Headline(NamedTuple):
    """``claim`` is the result, ``interval`` its interval, ``proof`` the evidence."""

    claim: str
    interval: str = ""
    proof: str = ""


def headline(findings: Findings) -> Headline:
    """The result of the run: the last variant against the reference."""
    final = next((v for v in reversed(findings.variants) if v != "reference"), None)
    if final is None:
        return _unfinished(findings)
    size = _compare(findings.gain(final, "size_bytes"), 0.005, "smaller", "larger", "no smaller")
    speed = _compare(findings.gain(final, "latency_ms"), 0.05, "faster", "slower", "about as fast")
    drop = findings.get(final, "top1_drop_points")
    cost = _cost(drop) if drop else Headline("at a cost in accuracy not yet measured")
    gains = [words for words, _ in (size, speed) if words] or [final]
    joint = " but " if size[1] * speed[1] < 0 else " and "
    claim = f"{joint.join(gains)}, {cost.claim}"
    return cost._replace(claim=claim[:1].upper() + claim[1:])


def _compare(
    gain: float | None, margin: float, better: str, worse: str, same: str
) -> tuple[str, int]:
    """Words for a gain, and its sign, which is 0 within ``margin`` of 1."""
    if gain is None:
        return "", 0
    if abs(gain - 1) <= margin:
        return same, 0
    ratio = max(gain, 1 / gain)
    words = numbers.times(ratio, 2 if ratio >= 1.095 else 3)  # avoid "1.0× smaller"
    return (f"{words} {better}", 1) if gain > 1 else (f"{words} {worse}", -1)


def _cost(drop: Record) -> Headline:
    """The loss or gain of accuracy and its evidence; the interval has the sign of the words."""
    on = f"Compared on the same {numbers.count(drop.n)} test images"
    p = drop.at.get("mcnemar_p")
    on += f" (McNemar p {numbers.probability(float(p))})" if p is not None else ""
    sign = 1 if drop.value > 0 else -1
    points = numbers.fixed(sign * drop.value)
    cost = f"{points} points {'less' if sign > 0 else 'more'} accurate"
    if points == "0.00":
        cost, sign = "equally accurate", 1
    if drop.low is None or drop.high is None:
        return Headline(cost, proof=f"{on}; no interval was recorded.")
    low, high = sorted((sign * drop.low, sign * drop.high))
    interval = f"95 % interval {numbers.signed(low)} to {numbers.signed(high)}"
    if drop.low > 0:
        return Headline(cost, interval, f"{on}, the loss is larger than chance explains.")
    if drop.high < 0:
        return Headline(cost, interval, f"{on}, the gain is larger than chance explains.")
    bound = f"a loss of more than {numbers.fixed(max(drop.high, 0))} points is unlikely"
    proof = f"{on}, the interval includes zero: no difference is shown, and {bound}."
    return Headline(cost, interval, proof)


def parity_sentence(findings: Findings) -> str:
    """Agreement of the quantized file with its simulation; empty if not measured."""
    record = findings.parity
    if record is None:
        return ""
    sentence = (
        f"The quantized file and its simulation in PyTorch predict the same class for "
        f"{numbers.fixed(record.value)} % of the {numbers.count(record.n)} test images"
    )
    largest, typical = (record.at.get(name) for name in ("largest_margin", "typical_margin"))
    if record.value == 100 or largest is None or typical is None:
        return f"{sentence}."
    most, median = (numbers.significant(float(margin)) for margin in (largest, typical))
    return (
        f"{sentence}; otherwise its class leads by at most {most} logits "
        f"(median margin of all images {median})."
    )


def packed_sentence(findings: Findings) -> str:
    """A sentence about the packed file; empty without one."""
    if findings.get("packed", "size_bytes") is None:
        return ""
    return "The packed file decodes to the quantized one, bit for bit."


def _unfinished(findings: Findings) -> Headline:
    stages = ", ".join(dict.fromkeys(stage for stage, _ in findings.seconds))
    after = f"Stages in place: {stages}." if stages else ""
    last = next((point.accuracy for point in reversed(findings.epochs) if point.accuracy), None)
    if last is None:
        return Headline("Nothing is measured yet", proof=after)
    accuracy = f"{numbers.fixed(last.value)} % on {numbers.count(last.n)} validation images"
    interval = f"95 % interval {bounds(last)}" if bounds(last) else ""
    return Headline(f"Not measured yet; so far {accuracy}", interval, after)


def missing(findings: Findings) -> list[str]:
    """Results that a complete run has and this one lacks."""
    absent = []
    for name, present in (
        ("training curves", findings.epochs),
        ("network-wide scan", findings.network_scan),
        ("per-layer scan", findings.layer_scans),
        ("threshold", findings.threshold),
        ("time per stage", findings.seconds),
    ):
        if not present:
            absent.append(name)
    unmeasured = [variant for variant in VARIANTS if variant not in findings.variants]
    if unmeasured:
        absent.append(f"every measurement of {', '.join(unmeasured)}")
    for variant in findings.variants:
        lacks = [
            NAMES[metric]
            for metric in SINGLE
            if findings.get(variant, metric) is None
            and (variant, metric) != ("reference", "top1_drop_points")
        ]
        if variant == "quantized" and findings.parity is None:
            lacks.append(NAMES["parity_percent"])
        if lacks:
            absent.append(f"{', '.join(lacks)} of {variant}")
    return absent
