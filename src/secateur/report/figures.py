"""Curves as SVG that takes its colors from the page around it.

A figure is drawn in marker colors and each is then replaced: inline by ``currentColor`` and the
page's variables, in a file of its own by tones that read on white and on black alike.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from secateur.records import Record
from secateur.report.findings import EpochPoint, Findings, ScanPoint
from secateur.report.numbers import percent

INK, CURVE, MARK = "#010203", "#040506", "#070809"
INLINE = {INK: "currentColor", CURVE: "var(--curve)", MARK: "var(--mark)"}
ALONE = {INK: "#747b85", CURVE: "#2f8f6b", MARK: "#c0702a"}

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "secateur",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlesize": 10,
    "grid.color": INK,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.2,
}


@dataclass(frozen=True)
class Figure:
    """A drawn curve.

    Attributes:
        name: Stem of its file.
        title: What is drawn, in a few words.
        alt: What one would see, for those who do not.
        inline: SVG for inside a page that sets ``--curve`` and ``--mark``.
        alone: SVG for a file of its own.
    """

    name: str
    title: str
    alt: str
    inline: str
    alone: str


def draw(found: Findings) -> dict[str, Figure]:
    """Every figure that ``found`` has numbers for, by name."""
    figures = []
    scanned = [point for point in found.network_scan if point.accuracy]
    if scanned:
        title = "Validation top-1, %, against the fraction pruned"
        alt = f"{title}, {_ends(p.accuracy for p in scanned)}. The band is the 95 % interval."
        figures.append(_figure("scan", title, alt, lambda axes: _scan(axes, scanned, found)))
    dropped = [point for point in found.network_scan if point.drop]
    if dropped:
        title = "Drop in points around the tolerance"
        alt = f"{title}. The band is the paired 95 % interval."
        figures.append(_figure("drop", title, alt, lambda axes: _drop(axes, dropped, found)))
    for name, title, pick in (
        ("accuracy", "Validation top-1, %, by epoch", lambda point: point.accuracy),
        ("loss", "Training loss by epoch", lambda point: point.loss),
    ):
        drawn = [point for point in found.epochs if pick(point)]
        if drawn:
            alt = f"{title}, {_ends(pick(point) for point in drawn)}."
            figures.append(_figure(name, title, alt, _training_curve(drawn, pick)))
    return {figure.name: figure for figure in figures}


def _ends(records: Iterable[Record | None]) -> str:
    values = [record.value for record in records if record]
    return f"from {values[0]:.4g} to {values[-1]:.4g}"


def _scan(axes: Axes, points: list[ScanPoint], found: Findings) -> None:
    _banded(axes, [100 * p.fraction for p in points], [p.accuracy for p in points])
    axes.set_xlabel("pruned without retraining, %")
    axes.set_xlim(0, 100)
    _mark_threshold(axes, found)


def _drop(axes: Axes, points: list[ScanPoint], found: Findings) -> None:
    tolerance = found.tolerance
    reach = 4 * (tolerance or 1.0)
    # A loss of eighty points at the far end would flatten the part where the choice is made.
    beyond = [i for i, p in enumerate(points) if p.drop and p.drop.value > reach]
    shown = points[: beyond[0] + 1] if beyond else points
    _banded(axes, [100 * p.fraction for p in shown], [p.drop for p in shown])
    lows = [p.drop.low for p in shown if p.drop and p.drop.low is not None]
    axes.set_ylim(min([-0.25 * reach, *lows]), reach)
    axes.set_xlabel("pruned without retraining, %")
    right = axes.get_xlim()[1]
    axes.set_xlim(0, max(right, 1))
    if tolerance is not None:
        axes.axhline(tolerance, color=MARK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(0, tolerance, " tolerance", color=MARK, va="bottom", fontsize=9)
    _mark_threshold(axes, found)


def _mark_threshold(axes: Axes, found: Findings) -> None:
    if found.threshold is None:
        return
    at = 100 * found.threshold.value
    low, high = axes.get_xlim()
    if not low <= at <= high:
        return
    axes.axvline(at, color=MARK, linewidth=1)
    left = at < (low + high) / 2
    words = f"threshold {percent(found.threshold.value)}"
    axes.annotate(
        words,
        (at, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4 if left else -4, 3),
        textcoords="offset points",
        ha="left" if left else "right",
        color=MARK,
        fontsize=9,
    )


def _training_curve(
    points: list[EpochPoint], pick: Callable[[EpochPoint], Record | None]
) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        stages = list(dict.fromkeys(point.stage for point in points))
        for stage in stages:
            chosen = [(x, pick(p)) for x, p in enumerate(points, 1) if p.stage == stage]
            xs = [x for x, _ in chosen]
            _banded(axes, xs, [record for _, record in chosen])
            if len(stages) > 1:
                _name_stage(axes, stage, xs, len(points))
        axes.set_xlabel("epoch, counted through all stages" if len(stages) > 1 else "epoch")
        axes.set_xlim(0.5, len(points) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return plot


def _name_stage(axes: Axes, stage: str, xs: list[int], total: int) -> None:
    if xs[0] > 1:
        axes.axvline(xs[0] - 0.5, color=INK, linewidth=0.7, alpha=0.5)
    room = 310 * len(xs) / total  # points of width that the stage has
    short = stage.rpartition("-")[2]
    name = next((n for n in (stage, short) if 5.2 * len(n) <= room), "")
    middle = (xs[0] + xs[-1]) / 2
    over = axes.get_xaxis_transform()
    axes.text(middle, 1.02, name, transform=over, ha="center", va="bottom", fontsize=9)


def _banded(axes: Axes, xs: list[float] | list[int], records: Iterable[Record | None]) -> None:
    """A curve with its interval as a band, where every point has one."""
    known = [record for record in records if record is not None]
    dots = "o" if len(known) <= 30 else ""
    axes.plot(xs, [r.value for r in known], color=CURVE, marker=dots, solid_joinstyle="round")
    lows = [r.low for r in known if r.low is not None]
    highs = [r.high for r in known if r.high is not None]
    if len(lows) == len(highs) == len(known):
        axes.fill_between(xs, lows, highs, color=CURVE, alpha=0.2, linewidth=0)


# ---- from matplotlib to a page


def _figure(name: str, title: str, alt: str, plot: Callable[[Axes], None]) -> Figure:
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(5, 3.1), layout="constrained")
        plot(canvas.add_subplot())
        drawing = cleaned(canvas, f"figure-{name}", alt)
    return Figure(name, title, alt, colored(drawing, INLINE), standing_alone(drawing, ALONE))


def standing_alone(drawing: str, colors: dict[str, str]) -> str:
    """A file of its own from what :func:`cleaned` returned."""
    space = '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" '
    return colored(drawing, colors).replace("<svg ", space, 1) + "\n"


def colored(drawing: str, colors: dict[str, str]) -> str:
    """Put colors where the markers are."""
    for marker, color in colors.items():
        drawing = drawing.replace(marker, color)
    return drawing


def cleaned(canvas: Canvas, prefix: str, alt: str) -> str:
    """SVG in marker colors, without what a page does not need.

    Args:
        canvas: Drawn within ``STYLE``.
        prefix: Makes its ids unique among the figures of one page.
        alt: What one would see.
    """
    file = io.StringIO()
    canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    root = ET.fromstring(svg)  # noqa: S314 matplotlib's own output
    for metadata in root.findall("{*}metadata"):
        root.remove(metadata)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id" and value not in used:
                continue
            if key == "id":
                value = f"{prefix}-{value}"
            value = value.replace("url(#", f"url(#{prefix}-")
            if key.endswith("href"):
                value = value.replace("#", f"#{prefix}-", 1)
            # Text takes the page's font; the size stays.
            value = re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", value)
            element.set(key.rpartition("}")[2], value)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")
