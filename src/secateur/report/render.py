"""Writes ``report.html``, ``report.md``, ``report.json`` and ``figures/``."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from secateur.disk import write_text
from secateur.errors import RecipeError
from secateur.recipe import read_toml
from secateur.records import read_records
from secateur.report import numbers
from secateur.report.charts import draw
from secateur.report.contents import Changes, Download, Estimate, Report, read_report
from secateur.report.from_records import report_of
from secateur.report.rows import block_rows, confusions, cost_rows, key_numbers, stage_rows
from secateur.report.summary import HEADINGS, bounds, signed_bounds, summary_rows
from secateur.report.vega import Chart, javascript


def write_report(run: Path, changes: Changes | None = None, *, scripts: bool = True) -> None:
    """Write a run's report from its ``records.jsonl`` and ``recipe.toml``.

    A folder with ``report.json`` but without records, as of ``secateur compress``, is rendered from
    that file.

    Args:
        run: Folder of the run, and output folder for ``report.html`` (self-contained),
            ``report.md``, ``report.json`` and the figures of the Markdown. Files are written
            atomically.
        changes: Layers, images and timings; None for those of an earlier ``report.json``.
        scripts: See :func:`render_report`.

    Raises:
        StoreError: The records are missing, damaged, empty, or of more than one run.
        RecipeError: The recipe is missing or not TOML with a name.
    """
    earlier = run / "report.json"
    if earlier.is_file() and not (run / "records.jsonl").exists():
        render_report(read_report(earlier), run, scripts=scripts)
        return
    records = read_records(run / "records.jsonl")
    toml, name, description = read_recipe(run / "recipe.toml")
    if changes is None:
        changes = _changes_of(read_report(earlier)) if earlier.is_file() else Changes()
    report = report_of(records, name, description, toml, changes, _downloads(run))
    render_report(report, run, scripts=scripts)


def render_report(report: Report, folder: Path, *, scripts: bool = True) -> None:
    """Write a report as JSON, HTML and Markdown with figures.

    Args:
        report: Contents of the report.
        folder: Existing output folder for ``report.json``, ``report.html``, ``report.md`` and
            ``figures/``.
        scripts: Whether to include 0.9 MB of Vega for interactive charts; otherwise charts are
            static.

    Raises:
        StoreError: A file cannot be written.
    """
    charts = draw(report)
    values = _values(report, charts) | page_script(scripts)
    (folder / "figures").mkdir(exist_ok=True)
    for chart in charts.values():
        write_text(folder / "figures" / f"{chart.name}.svg", chart.file)
    for name in ("report.html", "report.md"):
        write_text(folder / name, templates().get_template(f"{name}.j2").render(values))
    write_text(folder / "report.json", report.model_dump_json(exclude_defaults=True) + "\n")


def _changes_of(report: Report) -> Changes:
    return Changes(
        layers=report.layers,
        images=report.images,
        samples_ms={v.name: v.samples_ms for v in report.variants if v.samples_ms},
        memory_mb={v.name: v.memory_mb for v in report.variants if v.memory_mb},
    )


def _downloads(run: Path) -> tuple[Download, ...]:
    notes = {"net.sec": "packed network", "net.onnx": "network for any ONNX runtime"}
    return tuple(
        Download(href=name, size_bytes=(run / name).stat().st_size, note=note)
        for name, note in notes.items()
        if (run / name).is_file()
    )


def read_recipe(path: Path) -> tuple[str, str, str]:
    """Read text, name and description of a recipe, possibly of an older version.

    Raises:
        RecipeError: The recipe is missing or not TOML with a name.
    """
    toml, recipe = read_toml(path)
    if not isinstance(recipe.get("name"), str):
        raise RecipeError("recipe has no name", where=path, found=recipe.get("name"))
    return toml, recipe["name"], str(recipe.get("description", ""))


def _values(report: Report, charts: dict[str, Chart]) -> dict[str, Any]:
    """Values for the templates."""
    recipe = report.provenance.recipe
    backquotes = max(map(len, re.findall("`+", recipe)), default=0)
    return {
        "report": report,
        "charts": charts,
        "key": key_numbers(report),
        "headings": HEADINGS,
        "rows": summary_rows(report.variants),
        "blocks": block_rows(report.layers),
        "confusions": confusions(report.images),
        "costs": cost_rows(report.variants),
        "stages": stage_rows(report.provenance.stages),
        "total_seconds": sum(seconds for _, seconds in report.provenance.stages),
        "fence": "`" * max(3, 1 + backquotes),
    }


def page_script(scripts: bool = True) -> dict[str, Markup]:
    """The JavaScript for interactive charts; empty if ``scripts`` is False."""
    return {"javascript": Markup(javascript() if scripts else "")}  # noqa: S704 vl-convert's own


def templates() -> Environment:
    """The package's templates with their filters; HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("secateur.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": lambda estimate, digits=2: _number(estimate, numbers.fixed, digits),
        "signed": lambda estimate: _number(estimate, numbers.signed),
        "percent": lambda fraction: numbers.NONE if fraction is None else numbers.percent(fraction),
        "significant": numbers.significant,
        "count": numbers.count,
        "size": numbers.size,
        "duration": numbers.duration,
        "bounds": bounds,
        "signed_bounds": signed_bounds,
        "heat": _heat,
        "svg": lambda chart: Markup(chart.svg),  # noqa: S704 Vega's own, its text escaped
        "spec": lambda chart: Markup(chart.json),  # noqa: S704 escaped for scripts
        "md": markdown,
        "breakable": lambda name: Markup(".<wbr>").join(name.split(".")),
    }
    return environment


def _number(estimate: Estimate | None, form: Any, *digits: int) -> str:
    return numbers.NONE if estimate is None else form(estimate.value, *digits)


def _heat(drop: Estimate | float | None) -> int:
    """Tint of a drop, 0 to 100, on a logarithmic scale."""
    if drop is None:
        return 0
    value = drop if isinstance(drop, int | float) else drop.value
    return round(100 * math.log1p(min(max(value, 0.0), 100.0)) / math.log1p(100))


def markdown(text: str) -> str:
    """Escape text for Markdown, including table cells."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*\[\]<>|~#$])", r"\\\1", line.replace("&", "&amp;"))
    # Underscores inside words need no escape on GitHub; names stay readable.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
