"""Vega-Lite charts: one description, drawn as static SVG and, with scripts, made interactive.

Colors are CSS variables of the page, so that a chart follows its theme; in a file of its own they
are replaced by tones that read on white and on black alike. vl-convert brings the JavaScript of
Vega-Lite and draws without a browser.
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
"""Tones for a file that has no page around it."""

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
        "title": None, "labelFontSize": 11,
    },
    "text": {"color": INK, "fontSize": 11},
    "rule": {"color": INK},
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: Unique on its page, and the stem of its file.
        title: What is drawn, in a few words.
        alt: What one would see, for those who do not.
        spec: Vega-Lite, complete.
    """

    name: str
    title: str
    alt: str
    spec: Spec

    @functools.cached_property
    def svg(self) -> str:
        """SVG for inside a page that sets ``--curve``, ``--mark`` and ``--rule``."""
        drawn = vl_convert.vegalite_to_svg(self.spec)
        drawn = (
            re.sub(r' (?:width|height)="[\d.]+"', "", drawn[: drawn.index(">")], count=2)
            + (drawn[drawn.index(">") :])
        )
        drawn = re.sub(r' (?:role|aria-\w+)="[^"]*"', "", drawn)  # one image, not a tree of marks
        label = json.dumps(self.alt)[1:-1].replace("&", "&amp;").replace("<", "&lt;")
        head = f'<svg role="img" aria-label="{label}" '.replace('\\"', "&quot;")
        return _unique(re.sub(r"<svg ", lambda _: head, drawn, count=1), self.name)

    @property
    def file(self) -> str:
        """SVG for a file of its own."""
        drawn = self.svg
        for name, tone in STANDALONE.items():
            drawn = drawn.replace(name, tone)
        return drawn + "\n"

    @property
    def json(self) -> str:
        """The specification, safe inside a script element of HTML."""
        return json.dumps(self.spec, ensure_ascii=False).replace("<", "\\u003c")


def chart(name: str, title: str, alt: str, body: Spec, height: int = HEIGHT) -> Chart:
    """Make a chart of a Vega-Lite view without schema, size and theme, which all share."""
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
    """Name the ids of a drawing after it and by their order, for it shares a page with others."""
    ids = {old: f"{name}-{i}" for i, old in enumerate(re.findall(r'\bid="([^"]+)"', svg))}
    svg = re.sub(r'\bid="([^"]+)"', lambda match: f'id="{ids[match[1]]}"', svg)
    return re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{ids[match[1]]})", svg)
