"""The study's charts: measured and published accuracies, and the sensitivity figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from secateur.report import numbers
from secateur.report.vega import CURVE, INK, MARK, THIRD, Chart, Spec, chart
from secateur.study.cells import Cells
from secateur.study.curves import IN_FORCE, NOT_IN_FORCE, Curve, Point, scan_points
from secateur.study.formats import Table
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
"""Number of the figure, source and data set."""

COLORS = {"mobilenet_v2": CURVE, "shufflenet_v2_x1_0": MARK, "alexnet": THIRD}


class Sensitivity(NamedTuple):
    """One of the four figures, with its curves.

    Attributes:
        number: Number of the published figure, 1 to 4.
        source: ``paper`` or ``report``.
        dataset: Published name.
        curves: At most one for each network, and one more for its demonstration.
        chart: The figure.
    """

    number: int
    source: str
    dataset: str
    curves: tuple[Curve, ...]
    chart: Chart

    @property
    def networks_without(self) -> list[str]:
        """Titles of networks that were not scanned."""
        drawn = {curve.network for curve in self.curves}
        return [TITLES[network] for network in NETWORKS if network not in drawn]


def draw_sensitivity(cells: Cells) -> list[Sensitivity]:
    """Return the four figures in order, including those without curves."""
    return [_sensitivity(cells, *which) for which in FIGURES]


def curves_of(cells: Cells, dataset: str) -> list[Curve]:
    """Measured curves on one data set, of the group closest to the publication for each network."""
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


def _sensitivity(cells: Cells, number: int, source: str, dataset: str) -> Sensitivity:
    curves = curves_of(cells, dataset)
    title = f"Figure {number} of the {source}, {TITLES[dataset]}"
    alt = f"{title}: validation top-1, %, against the fraction pruned without retraining. " + (
        " ".join(f"{_in_words(curve)}." for curve in curves) or "No curve is measured yet."
    )
    layers = [*_curves(curves), *_published(source, dataset)]
    drawn = chart(f"figure-{number}", title, alt, {"layer": layers}, height=250)
    return Sensitivity(number, source, dataset, tuple(curves), drawn)


def _in_words(curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    kind = " with masks not applied, a demonstration" if curve.demonstration else ""
    return (
        f"{TITLES[curve.network]}{kind} goes from {numbers.fixed(first.percent.value)} at "
        f"{numbers.percent(first.fraction)} to {numbers.fixed(last.percent.value)} at "
        f"{numbers.percent(last.fraction)}"
    )


_X = {"field": "x", "type": "quantitative", "title": "pruned without retraining, %",
      "scale": {"domain": [0, 100]}}  # fmt: skip
_Y = {"field": "y", "type": "quantitative", "title": None, "scale": {"domain": [0, 100]}}
_COLOR = {
    "field": "network",
    "type": "nominal",
    "scale": {
        "domain": [TITLES[network] for network in NETWORKS],
        "range": [COLORS[network] for network in NETWORKS],
    },
    "legend": {"symbolOpacity": 1},
}


def _curves(curves: Sequence[Curve]) -> Iterator[Spec]:
    """Bands and lines; demonstrations are dashed."""
    for curve in curves:
        data = {"values": [_row(curve, point) for point in curve.points]}
        yield {
            "data": data,
            "mark": {"type": "area", "opacity": 0.16},
            "encoding": {"x": _X, "y": _Y | {"field": "low"}, "y2": {"field": "high"},
                         "color": _COLOR},
        }  # fmt: skip
        mark = {"type": "line", "point": {"filled": True, "size": 26}}
        yield {
            "data": data,
            "mark": mark | ({"strokeDash": [4, 3]} if curve.demonstration else {}),
            "encoding": {"x": _X, "y": _Y, "color": _COLOR,
                         "tooltip": [{"field": "words", "title": "point"}]},
        }  # fmt: skip
    if any(curve.demonstration for curve in curves):
        # Once, where no curve passes: all have fallen there.
        words = ["dashed: demonstration,", "masks not applied"]
        text = {"type": "text", "align": "right", "baseline": "top", "text": words, "color": INK}
        yield {"data": {"values": [{"x": 99, "y": 76}]}, "mark": text,
               "encoding": {"x": _X, "y": _Y}}  # fmt: skip


def _row(curve: Curve, point: Point) -> Spec:
    return {
        "network": TITLES[curve.network],
        "x": 100 * point.fraction,
        "y": point.percent.value,
        "low": point.percent.low,
        "high": point.percent.high,
        "words": describe(curve, point),
    }


def _published(source: str, dataset: str) -> Iterator[Spec]:
    """The published fraction of each network, and the published accuracy after retraining."""
    rows = []
    for network in NETWORKS:
        at = 100 * thresholds()[dataset, network]
        row = row_of(PRUNING, source, dataset, network, "pruned")
        printed = row.top1_percent.value if row and row.top1_percent else None
        rows.append({"network": TITLES[network], "x": at, "y": printed, "label": f"{at:g}"})
    data = {"values": rows}
    rule = {"type": "rule", "strokeDash": [1, 2]}
    yield {"data": data, "mark": rule, "encoding": {"x": _X, "color": _COLOR}}
    text = {"type": "text", "baseline": "bottom", "dy": -2}
    place = {"x": _X, "y": {"value": 0}, "text": {"field": "label"}, "color": _COLOR}
    yield {"data": data, "mark": text, "encoding": place}
    diamond = {"type": "point", "shape": "diamond", "size": 60}
    shown = {"x": _X, "y": _Y, "color": _COLOR}
    yield {
        "data": data,
        "transform": [{"filter": "isValid(datum.y)"}],
        "mark": diamond,
        "encoding": shown,
    }


def describe(curve: Curve, point: Point) -> str:
    """Describe a point in one line."""
    value, low, high = (numbers.fixed(bound) for bound in point.percent)
    seeds = f"{point.seeds} seed{'s' * (point.seeds != 1)}"
    kind = ", demonstration: masks not applied" if curve.demonstration else ""
    return (
        f"{TITLES[curve.network]}{kind}, {numbers.percent(point.fraction)} pruned: "
        f"{value} % [{low}, {high}], {seeds}, {numbers.count(point.images)} validation images"
    )


# ---- chart of accuracies

SHAPES = {"measured": "circle", "paper": "diamond", "report": "square"}


def draw_accuracies(table: Table) -> Chart | None:
    """Top-1 of each measured row and of both publications; None without measured rows."""
    keys = [(column.key, str(column.source)) for column in table.columns]
    at = {source: keys.index(("top1_percent", source)) for source in SHAPES}
    recipe = keys.index(("recipe", "label"))
    rows, names = list[Spec](), list[str]()
    for row in table.rows:
        measured = row[at["measured"]]
        if measured.value is None:
            continue
        dataset, network, variant = (entry.text for entry in row[:3])
        name = f"{network}, {dataset}, {variant}, {row[recipe].text}"
        names.append(name)
        for source, column in at.items():
            entry = row[column]
            if entry.value is not None:
                low, high = entry.low, entry.high
                value = entry.value
                rows.append({"name": name, "source": source, "x": value,
                             "low": value if low is None else low,
                             "high": value if high is None else high})  # fmt: skip
    if not rows:
        return None
    title = "Top-1 on the test images, %: measured here, in the paper, in the report"
    alt = f"{title}; {len(names)} rows of the table below."
    short = _labels(names)
    body = _accuracies(
        [row | {"label": short[str(row["name"])]} for row in rows], [*short.values()]
    )
    step = 34 if any(len(label.split(", ")) > 3 for label in short.values()) else 22
    return chart(f"accuracies-{table.name}", title, alt, body, height=step * len(names) + 60)


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Network, data set and variant of each row; and where rows share them, what tells them apart.

    That is as few of the last words of the setting as differ between all such rows.
    """
    words = {name: name.split(", ") for name in names}
    labels = {}
    for name in words:
        head = words[name][:3]
        alike = {other: each[3:] for other, each in words.items() if each[:3] == head}
        count = 0
        while len({(*each[max(0, len(each) - count) :],) for each in alike.values()}) < len(alike):
            count += 1
        last = alike[name][max(0, len(alike[name]) - count) :]
        labels[name] = ", ".join([*head, *last])
    return labels


def _accuracies(rows: list[Spec], labels: list[str]) -> Spec:
    """Points and intervals; the setting of a row is the second line of its label."""
    first, rest = (f"join(slice(split(datum.label, ', '), {at}), ', ')" for at in ("0, 3", "3"))
    lines = {"labelExpr": f"length(split(datum.label, ', ')) > 3 ? [{first}, {rest}] : {first}"}
    y = {"field": "label", "type": "nominal", "sort": labels, "title": None,
         "axis": {"labelLimit": 300, "labelLineHeight": 13, "labelOverlap": False, "grid": False}
                 | lines}  # fmt: skip
    x = {"field": "x", "type": "quantitative", "title": None, "scale": {"zero": False}}
    source = {"field": "source", "type": "nominal", "scale": {"domain": list(SHAPES)}}
    shape = {"scale": {"domain": list(SHAPES), "range": list(SHAPES.values())}}
    color = {"scale": {"domain": list(SHAPES), "range": [CURVE, INK, MARK]}}
    tips = [{"field": "name", "title": "row"}, {"field": "source", "title": "from"},
            {"field": "x", "title": "top-1, %", "format": ".2f"}]  # fmt: skip
    return {
        "data": {"values": rows},
        "width": 470,
        "padding": {"left": 28, "right": 5, "top": 5, "bottom": 5},  # fonts wider than measured
        "layer": [
            {"mark": {"type": "rule", "color": CURVE, "strokeWidth": 3, "opacity": 0.5},
             "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y}},
            {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
             "encoding": {"x": x, "y": y, "shape": source | shape, "color": source | color,
                          "tooltip": tips}},
        ],
    }  # fmt: skip
