"""The charts of a report, as Vega-Lite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.report.contents import (
    Calibration,
    Candidate,
    Curve,
    Estimate,
    ImageChanges,
    Report,
    Step,
    Variant,
)
from secateur.report.vega import CURVE, FAINT, INK, MARK, Chart, Spec, chart
from secateur.wording import counted

Row = dict[str, Any]
BEFORE, AFTER = "before", "after"


def draw(report: Report) -> dict[str, Chart]:
    """Return all charts for which the report has data, by name."""
    candidates = report.candidates
    charts = [
        _trade_off("size", "Size, kB", candidates, _kilobytes),
        _trade_off("latency", "Latency, ms", candidates, _milliseconds),
        *(_curve(curve) for curve in report.curves),
        _latencies(report.variants),
        _ladder(report.ladder),
        *(_images(report.images) if report.images else ()),
    ]
    return {drawn.name: drawn for drawn in charts if drawn is not None}


# ---- the trade-off


def _kilobytes(candidate: Candidate) -> float | None:
    return None if candidate.size_bytes is None else candidate.size_bytes / 1e3


def _milliseconds(candidate: Candidate) -> float | None:
    return None if candidate.latency is None else candidate.latency.value


def _trade_off(
    by: str, x_title: str, candidates: Sequence[Candidate], measure: Any
) -> Chart | None:
    rows = [
        _row(measure(candidate), candidate.top1)
        | {"name": candidate.name, "chosen": candidate.chosen}
        for candidate in candidates
        if measure(candidate) is not None
    ]
    if len(rows) < 2:
        return None
    split = candidates[0].split
    title = f"Top-1 on {split} images, %, by {by}"
    best = next((row for row in rows if row["chosen"]), rows[-1])
    number = counted(len(rows), "candidate")
    alt = f"{title}: {number}; {best['name']} at {best['x']:.4g}, {best['y']:.4g} %."
    picked = {"test": "datum.name === picked", "value": MARK}
    chosen = {"test": "datum.chosen", "value": CURVE}
    points = {
        "mark": {"type": "point", "filled": True, "opacity": 1, "cursor": "pointer"},
        "encoding": {
            "color": {"condition": [picked, chosen], "value": INK},
            "size": {"condition": [{"test": "datum.chosen", "value": 190}, picked | {"value": 130}],
                     "value": 60},
            "tooltip": _tooltip(x_title),
        },
    }  # fmt: skip
    label = {
        "transform": [{"filter": "datum.chosen"}],
        "mark": {"type": "text", "dy": -14, "color": CURVE, "fontWeight": "bold"},
        "encoding": {"text": {"value": "chosen"}},
    }
    body = {
        "params": [{"name": "picked", "value": ""}],
        "data": {"values": rows},
        "encoding": {"x": _x(x_title), "y": _y()},
        "layer": [_rule(), points, label],
    }
    return chart(f"trade-off-{by}", title, alt, body, height=260)


def _tooltip(x_title: str) -> list[Spec]:
    return [
        {"field": "name", "title": "candidate"},
        {"field": "y", "title": "top-1, %", "format": ".2f"},
        {"field": "x", "title": x_title.lower(), "format": ",.4~g"},
    ]


# ---- curves of scans and trainings


def _curve(curve: Curve) -> Chart:
    rows = [
        _row(point.x, point.y) | {"series": series.name}
        for series in curve.series
        for point in series.points
    ]
    first, last = rows[0]["y"], rows[-1]["y"]
    alt = f"{curve.title}, from {first:.4g} to {last:.4g}. The band is the 95 % interval."
    y = _y()
    if curve.y_limits:
        y["scale"] |= {"domain": list(curve.y_limits), "nice": False}
    tips = [
        {"field": "series", "title": "stage"},
        {"field": "x", "title": curve.x_title, "format": ".4~g"},
        {"field": "y", "title": "value", "format": ".4~g"},
    ]
    x, detail = _x(curve.x_title), {"field": "series"}
    own = {"x": x, "detail": detail}
    point = {"filled": True, "color": CURVE, "size": 26}
    shown = tips if curve.series[0].name else tips[1:]
    layers: list[Spec] = [
        {
            "mark": {"type": "area", "opacity": 0.2, "color": CURVE, "clip": True},
            "encoding": own | {"y": y | {"field": "low"}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "line", "color": CURVE, "clip": True, "point": point},
            "encoding": own | {"y": y, "tooltip": shown},
        },
    ]
    if len(curve.series) > 1:
        layers.append(_series_names())
    layers += _marks(curve)
    return chart(curve.name, curve.title, alt, {"data": {"values": rows}, "layer": layers})


def _series_names() -> Spec:
    """Label each series above its first point."""
    return {
        "transform": [
            {"aggregate": [{"op": "min", "field": "x", "as": "x"}], "groupby": ["series"]}
        ],
        "mark": {"type": "text", "align": "left", "dx": -3, "baseline": "bottom", "limit": 90},
        "encoding": {
            "x": {"field": "x", "type": "quantitative"},
            "y": {"value": 0},
            "text": {"field": "series"},
        },
    }


def _marks(curve: Curve) -> list[Spec]:
    layers: list[Spec] = []
    for channel, mark in (("x", curve.mark_x), ("y", curve.mark_y)):
        if mark is None:
            continue
        value, words = mark
        at = {channel: {"datum": value}}
        other = {"y": {"value": 10}} if channel == "x" else {"x": {"value": 0}}
        dashes = {} if channel == "x" else {"strokeDash": [4, 3]}
        one: Spec = {"data": {"values": [{}]}}
        layers.append(one | {"mark": {"type": "rule", "color": MARK} | dashes, "encoding": at})
        text = {"type": "text", "color": MARK, "align": "left", "dx": 4, "dy": -6, "text": words}
        layers.append(one | {"mark": text, "encoding": at | other})
    return layers


# ---- cost


def _latencies(variants: Sequence[Variant]) -> Chart | None:
    own = [variant for variant in variants if variant.samples_ms and not variant.decodes_to]
    if not own:
        return None
    rows = [{"x": value, "name": variant.name} for variant in own for value in variant.samples_ms]
    medians = ", ".join(
        f"{variant.name} {variant.latency.value:.3g} ms" for variant in own if variant.latency
    )
    title = "Latency of one image, ms"
    names = [variant.name for variant in own]
    y = {"field": "name", "type": "nominal", "sort": names, "title": None, "axis": {"grid": False}}
    x = {"field": "x", "type": "quantitative", "title": "ms"}
    median = {"field": "x", "aggregate": "median", "type": "quantitative"}
    tips = [{"field": "name"}, median | {"title": "median, ms", "format": ".3g"}]
    body = {
        "data": {"values": rows},
        "encoding": {"y": y, "x": x},
        "layer": [
            {"mark": {"type": "tick", "opacity": 0.3, "color": CURVE, "thickness": 1}},
            {
                "mark": {"type": "tick", "color": MARK, "thickness": 3},
                "encoding": {"x": median, "tooltip": tips},
            },
        ],
    }
    alt = f"{title}, every timing: medians {medians}."
    return chart("latencies", title, alt, body, height=46 * len(own) + 40)


def _ladder(steps: Sequence[Step]) -> Chart | None:
    if len(steps) < 2:
        return None
    rows = [_row(0, step.latency) | {"name": step.name} for step in steps]
    names = [step.name for step in steps]
    y = {"field": "name", "type": "nominal", "sort": names, "title": None,
         "axis": {"grid": False, "labelLimit": 150}}  # fmt: skip
    tips = [{"field": "name"}, {"field": "y", "title": "median, ms", "format": ".3g"}]
    body = {
        "data": {"values": rows},
        "encoding": {"y": y, "tooltip": tips},
        "layer": [
            {
                "mark": {"type": "bar", "color": CURVE, "opacity": 0.55, "height": 16},
                "encoding": {"x": {"field": "y", "type": "quantitative", "title": "ms"}},
            },
            {
                "mark": {"type": "rule"},
                "encoding": {
                    "x": {"field": "low", "type": "quantitative"},
                    "x2": {"field": "high"},
                },
            },
        ],
    }
    title = "From the reference to the exported file, ms per image"
    alt = f"{title}: " + ", ".join(f"{s.name} {s.latency.value:.3g}" for s in steps) + "."
    return chart("ladder", title, alt, body, height=36 * len(steps) + 40)


# ---- images


def _images(images: ImageChanges) -> list[Chart | None]:
    return [_classes(images), _calibration(images), _margins(images)]


def _classes(images: ImageChanges) -> Chart | None:
    if len(images.classes) > 60:
        return None
    rows = [
        {"name": name, "network": network, "y": 100 * counts[i] / max(sum(counts), 1)}
        for network, confusion in (
            (BEFORE, images.confusion_before),
            (AFTER, images.confusion_after),
        )
        for i, (name, counts) in enumerate(zip(images.classes, confusion, strict=True))
    ]
    title = "Accuracy of each class, %"
    y = {"field": "name", "type": "nominal", "sort": None, "title": None,
         "axis": {"grid": False, "labelLimit": 110}}  # fmt: skip
    x = {"field": "y", "type": "quantitative", "title": None, "scale": {"zero": False}}
    line = {"mark": {"type": "line", "color": FAINT, "strokeWidth": 3},
            "encoding": {"detail": {"field": "name"}}}  # fmt: skip
    tips = [{"field": "name"}, {"field": "network"}, {"field": "y", "title": "%", "format": ".1f"}]
    points = {
        "mark": {"type": "point", "filled": True, "opacity": 1, "size": 55},
        "encoding": {"color": _before_after(), "tooltip": tips},
    }
    body = {"data": {"values": rows}, "encoding": {"x": x, "y": y}, "layer": [line, points]}
    worst = max(zip(rows, rows[len(images.classes) :], strict=False), key=_loss)
    alt = f"{title}, before and after; no class loses."
    if (loss := _loss(worst)) > 0:
        points_lost = counted(float(f"{loss:.3g}"), "point")
        alt = f"{title}, before and after; {worst[0]['name']} loses most, {points_lost}."
    return chart("classes", title, alt, body, height=19 * len(images.classes) + 60)


def _loss(pair: tuple[Row, Row]) -> float:
    return float(pair[0]["y"] - pair[1]["y"])


def _before_after() -> Spec:
    return {
        "field": "network",
        "type": "nominal",
        "scale": {"domain": [BEFORE, AFTER], "range": [MARK, CURVE]},
    }


def _calibration(images: ImageChanges) -> Chart:
    def rows(network: str, calibration: Calibration) -> list[Row]:
        return [
            {"network": network, "x": 100 * b.confidence, "y": 100 * b.accuracy, "n": b.n}
            for b in calibration.bins
        ]

    before, after = images.calibration_before, images.calibration_after
    title = "Accuracy by confidence, %"
    alt = (
        f"{title}, before and after. Expected calibration error {100 * before.ece:.2f} and "
        f"{100 * after.ece:.2f} points."
    )
    tips = [{"field": "network"}, {"field": "x", "title": "confidence, %", "format": ".1f"},
            {"field": "y", "title": "accuracy, %", "format": ".1f"},
            {"field": "n", "title": "images"}]  # fmt: skip
    diagonal = {
        "data": {"values": [{"x": 0, "y": 0}, {"x": 100, "y": 100}]},
        "mark": {"type": "line", "color": FAINT, "strokeDash": [4, 3]},
    }
    line = {
        "mark": {"type": "line", "point": {"filled": True, "size": 30}},
        "encoding": {"color": _before_after(), "tooltip": tips},
    }
    body = {
        "data": {"values": rows(BEFORE, before) + rows(AFTER, after)},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": "confidence, %"},
            "y": {"field": "y", "type": "quantitative", "title": None},
        },
        "layer": [diagonal, line],
    }
    return chart("calibration", title, alt, body)


def _margins(images: ImageChanges) -> Chart | None:
    if not images.margin_counts:
        return None
    rows = [
        {"low": low, "high": high, "n": count}
        for low, high, count in zip(
            images.margin_edges, images.margin_edges[1:], images.margin_counts, strict=False
        )
    ]
    title = "Change of the margin, logits"
    tips = [
        {"field": "low", "title": "from", "format": ".2f"},
        {"field": "high", "title": "to", "format": ".2f"},
        {"field": "n", "title": "images"},
    ]
    body = {
        "data": {"values": rows},
        "layer": [
            {
                "mark": {"type": "bar", "color": CURVE, "opacity": 0.6, "binSpacing": 1},
                "encoding": {
                    "x": {
                        "field": "low",
                        "bin": {"binned": True},
                        "type": "quantitative",
                        "title": "after minus before: right of 0 the label gains",
                    },
                    "x2": {"field": "high"},
                    "y": {"field": "n", "type": "quantitative", "title": "images"},
                    "tooltip": tips,
                },
            },
            {"mark": {"type": "rule", "color": MARK}, "encoding": {"x": {"datum": 0}}},
        ],
    }
    middle = sum((r["low"] + r["high"]) / 2 * r["n"] for r in rows) / sum(r["n"] for r in rows)
    return chart("margins", title, f"{title}: {middle:.3g} on average.", body)


# ---- parts


def _row(x: float | None, y: Estimate) -> Row:
    return {
        "x": x,
        "y": y.value,
        "low": y.value if y.low is None else y.low,
        "high": y.value if y.high is None else y.high,
    }


def _x(title: str) -> Spec:
    scale = {"zero": False, "nice": False, "padding": 10}
    axis = {"tickCount": 6}
    return {"field": "x", "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _y() -> Spec:
    return {"field": "y", "type": "quantitative", "title": None, "scale": {"zero": False}}


def _rule() -> Spec:
    """Intervals of points."""
    return {
        "mark": {"type": "rule", "opacity": 0.35},
        "encoding": {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}},
    }
