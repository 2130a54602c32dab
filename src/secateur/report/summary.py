"""The one sentence and the one table a run comes down to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from secateur.records import Record
from secateur.report import numbers
from secateur.report.findings import SINGLE, VARIANTS, Findings
from secateur.report.numbers import NONE


class Cell(NamedTuple):
    """A number, and a smaller line under it that qualifies the number."""

    text: str
    note: str = ""


SAME = Cell("same")
"""Of a packed file, which decodes to the quantized one."""

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

    A variant is a row where the terminal is wide enough, else a column.
    """

    rows: list[tuple[Cell, ...]]

    WIDE = 112

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table that suits the width."""
        if not self.rows:
            yield Text("nothing is measured on the test images yet")
            return
        grid = [HEADINGS, *self.rows]
        if options.max_width < self.WIDE:
            grid = list(zip(*grid, strict=True))
        table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False, header_style="")
        for index, cell in enumerate(grid[0]):
            heading = _lines(cell._replace(note=cell.note or " "), "bold")  # all two lines high
            table.add_column(heading, justify="right" if index else "left")
        for row in grid[1:]:
            table.add_row(*(_lines(cell, "") for cell in row))
        yield table


def summary_table(records: list[Record]) -> SummaryTable:
    """The table of variants for a terminal: accuracy, size and speed with their intervals.

    Compression and speed-up are computed from bytes and medians. Before anything is measured a
    line says so.

    Raises:
        StoreError: As :meth:`secateur.report.findings.Findings.of`.
    """
    return SummaryTable(summary_rows(Findings.of(records)))


def _lines(cell: Cell, style: str) -> Text:
    text = Text(cell.text, style, no_wrap=True)
    return text.append(f"\n{cell.note}", "dim not bold") if cell.note else text


def summary_rows(found: Findings) -> list[tuple[Cell, ...]]:
    """A row of cells, in the order of ``HEADINGS``, for each variant measured."""
    return [_row(found, variant) for variant in found.variants]


def _row(found: Findings, variant: str) -> tuple[Cell, ...]:
    size = found.get(variant, "size_bytes")
    return (
        Cell(variant),
        _accuracy(found.get(variant, "top1_percent")),
        _drop(found.get(variant, "top1_drop_points")),
        _parameters(found.get(variant, "parameters"), found.get(variant, "nonzero_parameters")),
        _macs(found.get(variant, "macs")),
        Cell(numbers.size(size.value) if size else NONE),
        _gain(found, variant, "size_bytes"),
        _latency(found.get(variant, "latency_ms")),
        _gain(found, variant, "latency_ms"),
    )


def _parameters(whole: Record | None, nonzero: Record | None) -> Cell:
    if whole is not None and "decoded_to" in whole.at:
        return SAME
    return Cell(
        numbers.count(whole.value) if whole else NONE,
        numbers.count(nonzero.value) if nonzero else "",
    )


def _macs(record: Record | None) -> Cell:
    if record is None:
        return Cell(NONE)
    return SAME if "decoded_to" in record.at else Cell(numbers.short_count(record.value))


def _accuracy(record: Record | None) -> Cell:
    if record is None:
        return Cell(NONE)
    if "decoded_to" in record.at:
        return SAME
    return Cell(numbers.fixed(record.value), bounds(record))


def _drop(record: Record | None) -> Cell:
    if record is None:
        return Cell(NONE)
    if "decoded_to" in record.at:
        return SAME
    return Cell(numbers.signed(record.value), signed_bounds(record))


def _latency(record: Record | None) -> Cell:
    if record is None:
        return Cell(NONE)
    if "decoded_to" in record.at:
        return SAME
    note = ""
    if record.low is not None and record.high is not None:
        note = f"{numbers.significant(record.low)} to {numbers.significant(record.high)}"
    return Cell(numbers.significant(record.value), note)


def _gain(found: Findings, variant: str, metric: str) -> Cell:
    gain = found.gain(variant, metric)
    return Cell(NONE if gain is None or variant == "reference" else numbers.times(gain))


def bounds(record: Record | None, digits: int = 2) -> str:
    """``91.76 to 92.82``, or nothing where the value has no bounds."""
    if record is None or record.low is None or record.high is None:
        return ""
    return f"{numbers.fixed(record.low, digits)} to {numbers.fixed(record.high, digits)}"


def signed_bounds(record: Record | None) -> str:
    """``−0.11 to +0.35``, or nothing where the value has no bounds."""
    if record is None or record.low is None or record.high is None:
        return ""
    return f"{numbers.signed(record.low)} to {numbers.signed(record.high)}"


# ---- the sentence


class Headline(NamedTuple):
    """``claim`` is the result, ``interval`` its doubt, ``proof`` how far it may be trusted."""

    claim: str
    interval: str = ""
    proof: str = ""


def headline(found: Findings) -> Headline:
    """What came of the run, from its numbers: the last variant against the reference."""
    final = next((v for v in reversed(found.variants) if v != "reference"), None)
    if final is None:
        return _unfinished(found)
    size = _compare(found.gain(final, "size_bytes"), 0.005, "smaller", "larger", "no smaller")
    speed = _compare(found.gain(final, "latency_ms"), 0.05, "faster", "slower", "about as fast")
    drop = found.get(final, "top1_drop_points")
    cost = _cost(drop) if drop else Headline("at a cost in accuracy not yet measured")
    gains = [words for words, _ in (size, speed) if words] or [final]
    joint = " but " if size[1] * speed[1] < 0 else " and "
    claim = f"{joint.join(gains)}, {cost.claim}"
    return cost._replace(claim=claim[:1].upper() + claim[1:])


def _compare(
    gain: float | None, margin: float, better: str, worse: str, same: str
) -> tuple[str, int]:
    """Words for a gain, and its sign; within ``margin`` of 1 there is none."""
    if gain is None:
        return "", 0
    if abs(gain - 1) <= margin:
        return same, 0
    ratio = max(gain, 1 / gain)
    words = numbers.times(ratio, 2 if ratio >= 1.095 else 3)  # "1.0× smaller" would say nothing
    return (f"{words} {better}", 1) if gain > 1 else (f"{words} {worse}", -1)


def _cost(drop: Record) -> Headline:
    """What was paid in accuracy, and how sure that is; the interval follows the words' sign."""
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


def parity_sentence(found: Findings) -> str:
    """How far the quantized file decides as its simulation; nothing where that was not measured."""
    record = found.parity
    if record is None:
        return ""
    sentence = (
        f"Run beside its simulation in PyTorch, the quantized file chooses the same class for "
        f"{numbers.fixed(record.value)} % of the {numbers.count(record.n)} test images"
    )
    largest, typical = (record.at.get(name) for name in ("largest_margin", "typical_margin"))
    if record.value == 100 or largest is None or typical is None:
        return f"{sentence}."
    most, median = (numbers.significant(float(margin)) for margin in (largest, typical))
    return (
        f"{sentence}; where not, it prefers its own by at most {most} logits "
        f"(median margin of all images {median})."
    )


def packed_sentence(found: Findings) -> str:
    """What a packed file is; nothing where there is none."""
    if found.get("packed", "size_bytes") is None:
        return ""
    return "The packed file decodes to the quantized one, bit for bit."


def _unfinished(found: Findings) -> Headline:
    stages = ", ".join(dict.fromkeys(stage for stage, _ in found.seconds))
    after = f"Stages in place: {stages}." if stages else ""
    last = next((point.accuracy for point in reversed(found.epochs) if point.accuracy), None)
    if last is None:
        return Headline("Nothing is measured yet", proof=after)
    accuracy = f"{numbers.fixed(last.value)} % on {numbers.count(last.n)} validation images"
    interval = f"95 % interval {bounds(last)}" if bounds(last) else ""
    return Headline(f"Not measured yet; so far {accuracy}", interval, after)


def missing(found: Findings) -> list[str]:
    """What a finished run would have and this one has not."""
    absent = []
    for name, there in (
        ("training curves", found.epochs),
        ("network-wide scan", found.network_scan),
        ("per-layer scan", found.layer_scans),
        ("threshold", found.threshold),
        ("time per stage", found.seconds),
    ):
        if not there:
            absent.append(name)
    unmeasured = [variant for variant in VARIANTS if variant not in found.variants]
    if unmeasured:
        absent.append(f"every measurement of {', '.join(unmeasured)}")
    for variant in found.variants:
        lacks = [
            NAMES[metric]
            for metric in SINGLE
            if found.get(variant, metric) is None
            and (variant, metric) != ("reference", "top1_drop_points")
        ]
        if variant == "quantized" and found.parity is None:
            lacks.append(NAMES["parity_percent"])
        if lacks:
            absent.append(f"{', '.join(lacks)} of {variant}")
    return absent
