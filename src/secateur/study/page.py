"""Writes the reproduction: report in HTML and Markdown, tables in four formats, and figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from secateur.disk import write_text
from secateur.report import numbers
from secateur.report.render import markdown, page_script
from secateur.study.cells import Cells, read_cells
from secateur.study.contribution import contributions, verdict
from secateur.study.formats import Table
from secateur.study.outcome import missing, outcome, provenance
from secateur.study.plots import Sensitivity, describe, draw_accuracies, draw_sensitivity
from secateur.study.published import TITLES, contradictions
from secateur.study.tables import make_tables


def write_reproduction(out: Path, planned: Iterable[str] = (), *, scripts: bool = True) -> Path:
    """Write ``out/reproduction/`` from the finished cells of ``out/cells/`` only.

    The folder contains ``report.html`` (self-contained), ``report.md``,
    ``tables/{pruning,quantization,overfitting}.{md,csv,tex,html}`` and
    ``figures/*.svg``. Files are written atomically. Without cells, the pages show the published
    numbers only.

    Args:
        out: Folder of the study.
        planned: Names of planned cells; missing ones are listed.
        scripts: See :func:`secateur.report.render.render_report`.

    Returns:
        The page, ``out/reproduction/report.html``.
    """
    cells = read_cells(out)
    tables, figures = make_tables(cells), draw_sensitivity(cells)
    accuracies = {table.name: draw_accuracies(table) for table in tables}
    charts = {drawn.chart.name: drawn.chart for drawn in figures}
    charts |= {chart.name: chart for chart in accuracies.values() if chart is not None}
    folder = out / "reproduction"
    for part in ("tables", "figures"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for table in tables:
        _write_table(folder / "tables", table)
    for chart in charts.values():
        write_text(folder / "figures" / f"{chart.name}.svg", chart.file)
    values = (
        _values(cells, tables, figures, list(planned)) | {"charts": charts} | page_script(scripts)
    )
    for end in ("html", "md"):
        page = _templates().get_template(f"reproduction.{end}.j2").render(values)
        write_text(folder / f"report.{end}", page)
    return folder / "report.html"


def _write_table(folder: Path, table: Table) -> None:
    for end, text in (
        ("md", table.to_markdown()),
        ("csv", table.to_csv()),
        ("tex", table.to_latex()),
        ("html", table.to_html()),
    ):
        write_text(folder / f"{table.name}.{end}", text)


def _values(
    cells: Cells, tables: tuple[Table, ...], figures: list[Sensitivity], planned: list[str]
) -> dict[str, Any]:
    """Values for the templates."""
    return {
        "outcome": outcome(tables),
        "tables": tables,
        "figures": figures,
        "demonstrated": any(c.demonstration for drawn in figures for c in drawn.curves),
        "contradictions": contradictions(),
        "contributions": contributions(cells),
        "verdict": verdict(cells),
        "missing": missing(cells, tables, planned),
        "provenance": provenance(cells),
        "cells": cells.cells,
        "titles": TITLES,
        "describe": describe,
    }


def _templates() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("secateur.study"), PackageLoader("secateur.report")]),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": numbers.fixed,
        "percent": numbers.percent,
        "count": numbers.count,
        "svg": lambda chart: Markup(chart.svg),  # noqa: S704 Vega's own, its text escaped
        "spec": lambda chart: Markup(chart.json),  # noqa: S704 escaped for scripts
        "table": lambda table: Markup(table.to_html()),  # noqa: S704 escaped where it is made
        "md": markdown,
    }
    return environment
