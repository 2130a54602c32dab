"""Comparison of runs, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from secateur.disk import write_text
from secateur.errors import StoreError
from secateur.records import read_records
from secateur.report import numbers
from secateur.report.charts import draw
from secateur.report.contents import Changes, Estimate, Report, Variant, read_report
from secateur.report.from_records import report_of
from secateur.report.numbers import NONE
from secateur.report.render import page_script, read_recipe, templates
from secateur.report.summary import bounds, signed_bounds


class Row(NamedTuple):
    """One property, with a value and a note for each run.

    Attributes:
        best: Index of the run with the best value, or None.
    """

    name: str
    values: tuple[str, ...]
    notes: tuple[str, ...]
    best: int | None


def read_runs(runs: Sequence[Path]) -> list[Report]:
    """Read the reports of runs, from their records if they have any.

    Args:
        runs: Folders of ``secateur run`` or ``secateur compress``.

    Raises:
        StoreError: A folder has neither records nor a report.
        RecipeError: A recipe cannot be read.
    """
    return [_read(run) for run in runs]


def run_names(runs: Sequence[Path]) -> list[str]:
    """Return the shortest distinct ends of the paths.

    Example:
        >>> run_names([Path("a/net"), Path("b/net")])
        ['a/net', 'b/net']
    """
    parts = [run.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{run} ({number})" for number, run in enumerate(runs, 1)]


def _read(run: Path) -> Report:
    if (run / "records.jsonl").is_file():
        toml, name, description = read_recipe(run / "recipe.toml")
        return report_of(read_records(run / "records.jsonl"), name, description, toml, Changes())
    if (run / "report.json").is_file():
        return read_report(run / "report.json")
    raise StoreError("not a run", where=run, expected="records.jsonl or report.json in it")


class _Property(NamedTuple):
    """How a property is read and formatted; ``sign`` is 1 if more is better, else -1."""

    name: str
    measure: Callable[[Variant], float | Estimate | None]
    form: Callable[[float], str]
    sign: int
    note: Callable[[Estimate], str] = lambda _: ""


_PROPERTIES = (
    _Property("Top-1, %", lambda v: v.top1, numbers.fixed, 1, bounds),
    _Property("Drop, points", lambda v: v.drop, numbers.signed, -1, signed_bounds),
    _Property("Size", lambda v: v.size_bytes, numbers.size, -1),
    _Property("Latency, ms", lambda v: v.latency, numbers.significant, -1, lambda e: bounds(e, 3)),
    _Property("Parameters", lambda v: v.parameters, numbers.count, -1),
    _Property("MACs", lambda v: v.macs, numbers.short_count, -1),
)


def compare(reports: Sequence[Report]) -> list[Row]:
    """Compare the final file of each run, then list differences between runs."""
    finals = [report.variants[-1] if report.variants else Variant(name="") for report in reports]
    references = [report.variant("reference") or Variant(name="") for report in reports]
    reference = _PROPERTIES[0]._replace(name="Top-1 of the reference, %")
    rows = [_row(reference, references), *(_row(of, finals) for of in _PROPERTIES)]
    return [
        *(row for row in rows if any(value != NONE for value in row.values)),
        *_differences(reports),
    ]


def _row(of: _Property, variants: Sequence[Variant]) -> Row:
    measured = [of.measure(variant) for variant in variants]
    values = [m.value if isinstance(m, Estimate) else m for m in measured]
    known = [(of.sign * value, -i) for i, value in enumerate(values) if value is not None]
    distinct = len({value for value, _ in known}) > 1
    return Row(
        of.name,
        tuple(NONE if value is None else of.form(value) for value in values),
        tuple(of.note(m) if isinstance(m, Estimate) else "" for m in measured),
        -max(known)[1] if distinct else None,
    )


def _differences(reports: Sequence[Report]) -> Iterator[Row]:
    """Facts that differ between runs: processors, versions, seeds."""
    names = dict.fromkeys(name for report in reports for name in report.provenance.facts)
    for name in names:
        values = tuple(report.provenance.facts.get(name, NONE) for report in reports)
        if len(set(values)) > 1:
            yield Row(name, values, ("",) * len(values), None)


def comparison_table(names: Sequence[str], rows: Sequence[Row]) -> Table:
    """Format the comparison for a terminal, with best values in bold."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        cells = [
            f"{value} [{note}]" if note else value
            for value, note in zip(row.values, row.notes, strict=True)
        ]
        table.add_row(row.name, *(_bold(cell, i == row.best) for i, cell in enumerate(cells)))
    return table


def _bold(cell: str, best: bool) -> Text:
    return Text(cell, "bold" if best else "")


def write_comparison(names: Sequence[str], reports: Sequence[Report], path: Path) -> None:
    """Write the comparison as one self-contained page.

    Args:
        names: Distinct names of the runs.
        reports: Reports in the same order.
        path: The page to write.

    Raises:
        StoreError: The page cannot be written.
    """
    candidates = tuple(
        candidate.model_copy(update={"name": f"{name}: {candidate.name}"})
        for name, report in zip(names, reports, strict=True)
        for candidate in report.candidates
    )
    together = Report(title="", verdict=reports[0].verdict, candidates=candidates)
    page = templates().get_template("comparison.html.j2")
    values = {
        "names": names,
        "rows": compare(reports),
        "reports": reports,
        "charts": draw(together),
    }
    write_text(path, page.render(values | page_script()))
