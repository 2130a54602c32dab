"""Figures for Markdown, drawn with Vega-Lite as static SVG."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secateur.report.vega import Spec, chart

_PADDING = {"left": 20, "right": 20, "top": 5, "bottom": 5}
"""In pixels, for fonts that are wider than the measured one."""


def write_figure(path: Path, alt: str, body: Spec, height: int = 260) -> None:
    """Write one chart.

    Args:
        path: The SVG file; its stem is the chart's name.
        alt: Description of the figure, as alternative text.
        body: As of :func:`secateur.report.vega.chart`.
        height: Height of the figure in pixels.
    """
    drawn = chart(path.stem, alt, alt, body, height)
    path.write_text(drawn.file, encoding="utf-8", newline="\n")


def write_panels(path: Path, alt: str, panels: Iterable[Spec], columns: int) -> None:
    """Write views next to each other, ``columns`` in a row, each with its own axes."""
    body = {
        "concat": list(panels),
        "columns": columns,
        "autosize": {"type": "pad"},
        "padding": _PADDING,
    }
    write_figure(path, alt, body)


def quantitative(field: str, title: str | None = None, **scale: Any) -> Spec:
    """An axis of numbers, which need not start at 0."""
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False} | scale,
    }
