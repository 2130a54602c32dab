"""The four sensitivity figures: our curves over the fractions that the publications settled on.

A point of a curve can be pointed at, or reached with the keyboard, and says what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from secateur.report import figures as style
from secateur.report import numbers
from secateur.report.figures import Figure, cleaned, colored, standing_alone
from secateur.study.cells import Cells
from secateur.study.curves import IN_FORCE, NOT_IN_FORCE, Curve, Point, scan_points
from secateur.study.published import (
    NETWORKS,
    PRUNING,
    TITLES,
    row_of,
    thresholds,
)
from secateur.study.tables import best_group, label_of

FIGURES = ((1, "paper", "cifar10"), (2, "paper", "fashionmnist"),
           (3, "report", "cifar10"), (4, "report", "fashionmnist"))  # fmt: skip
"""Number in its publication, source and data set."""

MARKERS = {"mobilenet_v2": "#040506", "shufflenet_v2": "#070809", "alexnet": "#0a0b0c"}
INLINE = {
    style.INK: "currentColor",
    MARKERS["mobilenet_v2"]: "var(--curve)",
    MARKERS["shufflenet_v2"]: "var(--mark)",
    MARKERS["alexnet"]: "var(--third)",
}
ALONE = {
    style.INK: "#747b85",
    MARKERS["mobilenet_v2"]: "#2f8f6b",
    MARKERS["shufflenet_v2"]: "#c0702a",
    MARKERS["alexnet"]: "#6a6fd0",
}
SIZE = (6.4, 4.0)


class Sensitivity(NamedTuple):
    """One of the four figures, with what it shows.

    Attributes:
        number: Of the published figure, 1 to 4.
        source: ``paper`` or ``report``.
        dataset: As published.
        curves: Ours, at most one of a network and one more where its demonstration was asked for.
        figure: Drawn.
    """

    number: int
    source: str
    dataset: str
    curves: tuple[Curve, ...]
    figure: Figure

    @property
    def networks_without(self) -> list[str]:
        """Networks, as written, that were not scanned."""
        drawn = {curve.network for curve in self.curves}
        return [TITLES[network] for network in NETWORKS if network not in drawn]


def draw_sensitivity(cells: Cells) -> list[Sensitivity]:
    """The four figures in the order of their numbers, those without any curve of ours included."""
    return [_sensitivity(cells, *which) for which in FIGURES]


def curves_of(cells: Cells, dataset: str) -> list[Curve]:
    """Ours on one data set, of the group of each network that is closest to the publication."""
    curves = []
    for network in NETWORKS:
        group = best_group(cells, dataset, network)
        for layer in (IN_FORCE, NOT_IN_FORCE) if group else ():
            assert group is not None
            points = scan_points(group, layer)
            if points:
                label = label_of(group.setting, network)
                curves.append(Curve(network, label, points, layer == NOT_IN_FORCE))
    return curves


def say(curve: Curve, point: Point) -> str:
    """What a point is, in one line."""
    value, low, high = (numbers.fixed(bound) for bound in point.percent)
    seeds = f"{point.seeds} seed{'s' * (point.seeds != 1)}"
    kind = ", demonstration: masks not in force" if curve.demonstration else ""
    return (
        f"{TITLES[curve.network]}{kind}, {numbers.percent(point.fraction)} pruned: "
        f"{value} % [{low}, {high}], {seeds}, {numbers.count(point.images)} validation images"
    )


def _sensitivity(cells: Cells, number: int, source: str, dataset: str) -> Sensitivity:
    curves = curves_of(cells, dataset)
    title = f"Figure {number} of the {source}, {TITLES[dataset]}"
    alt = f"{title}: validation top-1, %, against the fraction pruned without retraining. " + (
        " ".join(f"{_in_words(curve)}." for curve in curves) or "No curve of ours yet."
    )
    with mpl.rc_context(style.STYLE):
        # At 72 dots an inch a pixel of matplotlib's is a unit of its SVG.
        canvas = Canvas(figsize=SIZE, dpi=72, layout="constrained")
        axes = canvas.add_subplot()
        _plot(axes, curves, source, dataset)
        drawing = cleaned(canvas, f"figure-{number}", alt)
        drawing = _pointable(drawing, axes, curves)
    figure = Figure(
        f"figure-{number}", title, alt, colored(drawing, INLINE), standing_alone(drawing, ALONE)
    )
    return Sensitivity(number, source, dataset, tuple(curves), figure)


def _in_words(curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    kind = " with masks not in force, a demonstration" if curve.demonstration else ""
    return (
        f"{TITLES[curve.network]}{kind} goes from {numbers.fixed(first.percent.value)} at "
        f"{numbers.percent(first.fraction)} to {numbers.fixed(last.percent.value)} at "
        f"{numbers.percent(last.fraction)}"
    )


def _plot(axes: Axes, curves: Sequence[Curve], source: str, dataset: str) -> None:
    for curve in curves:
        _curve(axes, curve)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("pruned without retraining, %")
    axes.set_ylabel("validation top-1, %")
    for network in NETWORKS:
        _published(axes, source, dataset, network)
    axes.legend(
        handles=_legend(curves, source),
        loc="lower left",
        bbox_to_anchor=(0, 1.07),
        ncols=3,
        frameon=False,
        fontsize=9,
        borderaxespad=0,
        handlelength=1.6,
        columnspacing=1.4,
    )


def _curve(axes: Axes, curve: Curve) -> None:
    color, xs = MARKERS[curve.network], [100 * point.fraction for point in curve.points]
    dashes = (0, (4, 3)) if curve.demonstration else "-"
    axes.plot(xs, [point.percent.value for point in curve.points], color=color, linestyle=dashes)
    lows = [point.percent.low for point in curve.points]
    highs = [point.percent.high for point in curve.points]
    axes.fill_between(xs, lows, highs, color=color, alpha=0.16, linewidth=0)


def _published(axes: Axes, source: str, dataset: str, network: str) -> None:
    """The fraction settled on, and what the table prints there after retraining."""
    at, color = 100 * thresholds()[dataset, network], MARKERS[network]
    axes.axvline(at, color=color, linewidth=1, linestyle=(0, (1, 2)))
    over = axes.get_xaxis_transform()
    axes.text(at, 1.01, f"{at:g}", transform=over, color=color, ha="center", fontsize=9)
    row = row_of(PRUNING, source, dataset, network, "pruned")
    if row is not None and row.top1_percent is not None:
        diamond = axes.plot([at], [row.top1_percent.value], "D", color=color, markersize=5)
        diamond[0].set_markerfacecolor("none")


def _legend(curves: Sequence[Curve], source: str) -> list[Line2D]:
    """Networks in the first row, what belongs to all of them under it; filled column by column."""
    ink = style.INK
    common = [
        Line2D([], [], color=ink, linewidth=1, linestyle=(0, (1, 2)), label=f"{source} settled on"),
        Line2D([], [], color=ink, linestyle="", marker="D", markersize=5, markerfacecolor="none"),
    ]
    common[1].set_label(f"{source}, retrained")
    if any(curve.demonstration for curve in curves):
        words = "demonstration: masks not in force"
        common.append(Line2D([], [], color=ink, linestyle=(0, (4, 3)), label=words))
    else:
        common.append(Line2D([], [], linestyle="", label=" "))
    networks = [Line2D([], [], color=MARKERS[name], label=TITLES[name]) for name in NETWORKS]
    return [handle for pair in zip(networks, common, strict=True) for handle in pair]


def _pointable(drawing: str, axes: Axes, curves: Sequence[Curve]) -> str:
    """Lay over each curve a group of points that say what they are."""
    height = SIZE[1] * 72
    groups = []
    for curve in curves:
        points = []
        for nth, point in enumerate(curve.points):
            x, y = axes.transData.transform((100 * point.fraction, point.percent.value))
            points.append(_target(x, height - y, say(curve, point), first=nth == 0))
        color = MARKERS[curve.network]
        name = escape(TITLES[curve.network])
        kind = " demonstration" if curve.demonstration else ""
        groups.append(
            f'<g class="curve{kind}" role="group" aria-label="{name}{kind}" fill="{color}">'
            f"{''.join(points)}</g>"
        )
    # What is inside an image cannot be reached; a group of images can.
    drawing = drawing.replace('role="img"', 'role="group"', 1)
    return drawing.removesuffix("</svg>") + "".join(groups) + "</svg>"


def _target(x: float, y: float, text: str, *, first: bool) -> str:
    said, place = escape(text), f'cx="{x:.2f}" cy="{y:.2f}"'
    return (
        f'<g class="point" role="img" tabindex="{0 if first else -1}" aria-label="{said}">'
        f'<title>{said}</title><circle {place} r="8" fill-opacity="0"/>'
        f'<circle class="dot" {place} r="2.6"/></g>'
    )
