"""The figure of compressed networks: bytes and accuracy before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import records
from benchmarks.common.figures import write_figure
from benchmarks.common.records import Record
from benchmarks.compress_tables import COMPRESSED
from secateur.report import numbers
from secateur.report.vega import CURVE, INK, Spec

ALT = "Bytes of each network before and after `secateur compress`, with their accuracies"
WIDTH, ROW_PIXELS = 640, 26


def draw(folder: Path) -> None:
    """Write ``outcome.svg`` next to the records, one row for each compressed network."""
    rows = [row for row in records.read(folder / COMPRESSED) if "variants" in row]
    if rows:
        drawn = [_row(row) for row in {row["network"]: row for row in rows}.values()]
        drawn.sort(key=lambda each: -each["before"])
        write_figure(folder / "outcome.svg", ALT, _body(drawn), ROW_PIXELS * len(drawn) + 40)


def _row(record: Record) -> dict[str, Any]:
    before, _, packed = record["variants"]
    smaller = numbers.times(before["size_bytes"] / packed["size_bytes"])
    accuracies = " → ".join(numbers.fixed(each["top1"]["value"], 1) for each in (before, packed))
    return {
        "before": before["size_bytes"],
        "after": packed["size_bytes"],
        "label": f"{record['network']}: {smaller} smaller, {accuracies} %",
    }


def _body(rows: Sequence[dict[str, Any]]) -> Spec:
    title = "bytes of the file: float (gray), packed (green)"
    scale, axis = {"type": "log", "nice": True}, {"format": "~s", "tickCount": 4}
    size = {"field": "after", "type": "quantitative", "title": title, "scale": scale, "axis": axis}
    order = [row["label"] for row in rows]
    label = {"field": "label", "type": "nominal", "title": None, "sort": order,
             "axis": {"labelLimit": 0}}  # fmt: skip
    before = size | {"field": "before"}
    return {
        "width": WIDTH,
        "padding": {"left": 60, "right": 10, "top": 5, "bottom": 5},  # for wider fonts
        "data": {"values": list(rows)},
        "encoding": {"y": label},
        "layer": [
            {"mark": {"type": "rule", "color": CURVE, "strokeWidth": 2},
             "encoding": {"x": size, "x2": {"field": "before"}}},
            {"mark": {"type": "point", "filled": True, "size": 70, "color": INK},
             "encoding": {"x": before}},
            {"mark": {"type": "point", "filled": True, "size": 110, "color": CURVE, "opacity": 1},
             "encoding": {"x": size}},
        ],
    }  # fmt: skip
