"""Vega-Lite charts: one description, drawn as static SVG and, with scripts, made interactive.

Colors are CSS variables of the page's theme. In separate files they are replaced by colors that are
readable on white and black. vl-convert includes the JavaScript of Vega-Lite and renders without a
browser.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from typing import Any

import vl_convert

INK, CURVE, MARK, THIRD, FAINT = (
    "currentColor", "var(--curve)", "var(--mark)", "var(--third)", "var(--rule)",
)  # fmt: skip
STANDALONE = {
    INK: "#747b85", CURVE: "#2f8f6b", MARK: "#c0702a", THIRD: "#6a6fd0", FAINT: "#9aa1a9",
}  # fmt: skip
"""Colors for separate files."""

WIDTH, HEIGHT = 340, 210

Spec = dict[str, Any]

_AXIS = {
    "domain": False, "ticks": False, "grid": False, "labelColor": INK, "titleColor": INK,
    "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 11, "labelPadding": 6,
    "labelOverlap": "greedy", "labelSeparation": 4,
}  # fmt: skip
_CONFIG = {
    "font": "system-ui, sans-serif",
    "aria": False,
    "view": {"stroke": None},
    "axis": _AXIS,
    "axisY": {"grid": True, "gridColor": INK, "gridOpacity": 0.16},
    "legend": {
        "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "orient": "top",
        "title": None, "labelFontSize": 11, "symbolBaseFillColor": INK,
        "symbolBaseStrokeColor": INK,
    },
    "text": {"color": INK, "fontSize": 11},
    "rule": {"color": INK},
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: Unique name on the page, and stem of the file.
        title: Title in a few words.
        alt: Alternative text.
        spec: Complete Vega-Lite specification.
    """

    name: str
    title: str
    alt: str
    spec: Spec

    @functools.cached_property
    def svg(self) -> str:
        """SVG for a page that defines ``--curve``, ``--mark`` and ``--rule``."""
        drawn = vl_convert.vegalite_to_svg(self.spec)
        drawn = (
            re.sub(r' (?:width|height)="[\d.]+"', "", drawn[: drawn.index(">")], count=2)
            + (drawn[drawn.index(">") :])
        )
        drawn = re.sub(r' (?:role|aria-\w+)="[^"]*"', "", drawn)  # one image for screen readers
        label = json.dumps(self.alt)[1:-1].replace("&", "&amp;").replace("<", "&lt;")
        head = f'<svg role="img" aria-label="{label}" '.replace('\\"', "&quot;")
        return _unique(re.sub(r"<svg ", lambda _: head, drawn, count=1), self.name)

    @property
    def file(self) -> str:
        """SVG for a separate file."""
        drawn = self.svg
        for name, tone in STANDALONE.items():
            drawn = drawn.replace(name, tone)
        return drawn + "\n"

    @property
    def json(self) -> str:
        """The specification, escaped for a script element of HTML."""
        return json.dumps(self.spec, ensure_ascii=False).replace("<", "\\u003c")


def chart(name: str, title: str, alt: str, body: Spec, height: int = HEIGHT) -> Chart:
    """Make a chart from a Vega-Lite view; adds schema, size and theme."""
    shared = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "background": None,
        "config": _CONFIG,
    }
    return Chart(name, title, alt, shared | body)


@functools.cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed in one script, which sets ``window.vegaEmbed``."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _unique(svg: str, name: str) -> str:
    """Make the ids of a drawing unique on a page with several."""
    ids = {old: f"{name}-{i}" for i, old in enumerate(re.findall(r'\bid="([^"]+)"', svg))}
    svg = re.sub(r'\bid="([^"]+)"', lambda match: f'id="{ids[match[1]]}"', svg)
    return re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{ids[match[1]]})", svg)
