"""Writes ``report.html``, ``report.md`` and ``figures/`` next to a run's records."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from secateur.disk import write_text
from secateur.errors import RecipeError
from secateur.records import Record, read_records
from secateur.report import numbers
from secateur.report.figures import Figure, draw
from secateur.report.findings import Findings
from secateur.report.summary import (
    HEADINGS,
    bounds,
    headline,
    missing,
    packed_sentence,
    parity_sentence,
    signed_bounds,
    summary_rows,
)


def write_report(run: Path) -> None:
    """Write a run's report from its ``records.jsonl`` and ``recipe.toml``, and nothing else.

    Args:
        run: Folder of the run; receives ``report.html`` (self-contained), ``report.md`` and the
            latter's ``figures/*.svg``. Each file is whole or not there.

    Raises:
        StoreError: The records are missing, damaged, none, or of more than one run.
        RecipeError: The recipe is missing or is not TOML with a name.
    """
    records = read_records(run / "records.jsonl")
    toml, said = _read_recipe(run / "recipe.toml")
    found = Findings.of(records)
    figures = draw(found)
    says = _says(found, figures, toml, said)
    (run / "figures").mkdir(exist_ok=True)
    for figure in figures.values():
        write_text(run / "figures" / f"{figure.name}.svg", figure.alone)
    for name in ("report.html", "report.md"):
        write_text(run / name, _templates().get_template(f"{name}.j2").render(says))


def _read_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    # Not secateur.recipe: a recipe of an older version stays readable here.
    try:
        toml = path.read_text(encoding="utf-8")
        said = tomllib.loads(toml)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError("cannot read recipe", where=path, found=error) from error
    if not isinstance(said.get("name"), str):
        raise RecipeError("recipe has no name", where=path, found=said.get("name"))
    return toml, said


def _says(
    found: Findings, figures: dict[str, Figure], toml: str, said: dict[str, Any]
) -> dict[str, Any]:
    """Everything the templates speak of."""
    spent = [seconds for _, seconds in found.seconds]
    return {
        "name": said["name"],
        "description": str(said.get("description", "")),
        "about": found.about,
        "found": found,
        "headline": headline(found),
        "parity": " ".join(filter(None, (parity_sentence(found), packed_sentence(found)))),
        "missing": missing(found),
        "headings": HEADINGS,
        "rows": summary_rows(found),
        "figures": figures,
        "layer_fractions": sorted({p.fraction for ps in found.layer_scans.values() for p in ps}),
        "layer_images": _images(p.drop for ps in found.layer_scans.values() for p in ps),
        "scan_images": _images(p.drop or p.accuracy for p in found.network_scan),
        "spent": sum(spent),
        "longest": max(spent, default=0.0) or 1.0,
        "toml": toml.strip(),
        "fence": "`" * max(3, 1 + max(map(len, re.findall("`+", toml)), default=0)),
    }


def _images(records: Any) -> str:
    """How many images a scan looked at."""
    seen = sorted({record.n for record in records if record})
    return " to ".join(numbers.count(n) for n in dict.fromkeys((seen[0], seen[-1]))) if seen else ""


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("secateur.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": lambda record, digits=2: _number(record, numbers.fixed, digits),
        "signed": lambda record: _number(record, numbers.signed),
        "percent": lambda fraction: numbers.NONE if fraction is None else numbers.percent(fraction),
        "count": numbers.count,
        "duration": numbers.duration,
        "bounds": bounds,
        "signed_bounds": signed_bounds,
        "heat": _heat,
        "svg": lambda figure: Markup(figure.inline),  # noqa: S704 ours, its text escaped
        "md": markdown,
        "breakable": lambda name: Markup(".<wbr>").join(name.split(".")),
    }
    return environment


def _number(record: Record | None, form: Any, *digits: int) -> str:
    return numbers.NONE if record is None else form(record.value, *digits)


def _heat(record: Record | None) -> int:
    """How strongly to tint a drop, 0 to 100: logarithmic, for 1 point matters as 50 do."""
    if record is None:
        return 0
    lost = min(max(record.value, 0.0), 100.0)
    return round(100 * math.log1p(lost) / math.log1p(100))


def markdown(text: str) -> str:
    """Text that Markdown, a table cell included, shows as it is."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*\[\]<>|~#$])", r"\\\1", line.replace("&", "&amp;"))
    # Inside a word GitHub leaves underscores alone, and names stay readable in the source.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
