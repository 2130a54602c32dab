"""The report of the pruning grid: tables, paired comparisons and a figure.

Run: python -m benchmarks pruning_grid report
Reads results/pruning_grid/*.jsonl, writes README.md and accuracy.svg beside them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.common.figures import quantitative, write_panels
from secateur.report.vega import CURVE, INK, MARK, THIRD, Spec

FOLDER = Path(__file__).parent.parent / "results" / "pruning_grid"
ARMS = ("l2-local", "l2-global", "sensitivity", "random")
COLORS = {
    "l2-local": CURVE, "l2-global": MARK, "sensitivity": THIRD, "random": "#b84a62",
    "scratch": "#8a919b", "scratch-long": "#9a7b3a",
}  # fmt: skip
DASHES = {"rewind": [1, 0], "finetune": [5, 3], "one-cycle": [1, 2]}
TITLES = {"mobilenet_v2": "MobileNetV2", "shufflenet_v2": "ShuffleNetV2 x1.0"}
Rows = list[dict[str, Any]]


def read() -> dict[str, Rows]:
    """Records of each network."""
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(FOLDER.glob("*.jsonl"))
    }


def seeds_of(rows: Rows, left: float, arm: str, retrain: str) -> dict[int, dict[str, Any]]:
    """Records of one cell by seed."""
    return {
        row["seed"]: row
        for row in rows
        if (row["left"], row["arm"], row["retrain"]) == (left, arm, retrain)
    }


def accuracy(row: dict[str, Any]) -> float:
    """Percent of the test images."""
    return 100 * row["test_right"] / row["test_images"]


def right(row: dict[str, Any]) -> npt.NDArray[np.float64]:
    """1 for each test image that is right, else 0, in percent."""
    packed = np.frombuffer(base64.b64decode(row["right"]), np.uint8)
    return 100.0 * np.unpackbits(packed)[: row["test_images"]]


def cell(result: dict[int, dict[str, Any]]) -> str:
    """Mean over seeds, with their standard deviation and number."""
    values = [accuracy(row) for row in result.values()]
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} ({len(values)})"


def difference(
    first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]
) -> tuple[float, float, float, int] | None:
    """Mean of ``first`` minus ``second`` over shared seeds, in points, with its 95 % interval.

    Differences are averaged over seeds for each image; the interval is Student's over images. It
    covers the variance of images, not of trainings.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    each = np.mean([right(first[seed]) - right(second[seed]) for seed in shared], axis=0)
    error = each.std(ddof=1) / len(each) ** 0.5
    reach = float(stats.t.ppf(0.975, len(each) - 1)) * error
    mean = float(each.mean())
    return mean, mean - reach, mean + reach, len(shared)


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" + " ---: |" * (len(header) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def points(rows: Rows) -> list[float]:
    """Fractions of the multiply-accumulates of the arms, decreasing."""
    return sorted({row["left"] for row in rows if row["left"] < 1}, reverse=True)


def accuracies(rows: Rows) -> Iterator[str]:
    """The table of one network: a row for each arm, a column for each point."""
    lefts = points(rows)
    ways = [(arm, retrain) for retrain in ("rewind", "finetune") for arm in ARMS]
    ways += [("scratch", "one-cycle"), ("scratch-long", "one-cycle")]
    body = [
        [f"{arm}, {retrain}", *(cell(seeds_of(rows, left, arm, retrain)) for left in lefts)]
        for arm, retrain in ways
    ]
    body.append(["*parameters left*, l2-local", *(share(rows, left, "l2-local") for left in lefts)])
    body.append(
        ["*parameters left*, l2-global", *(share(rows, left, "l2-global") for left in lefts)]
    )
    body.append(
        ["*parameters left*, sensitivity", *(share(rows, left, "sensitivity") for left in lefts)]
    )
    yield from table(["MACs left", *(f"{100 * left:.0f} %" for left in lefts)], body)


def share(rows: Rows, left: float, arm: str) -> str:
    """Remaining fraction of the parameters of an arm."""
    result = seeds_of(rows, left, arm, "rewind")
    return (
        f"{100 * np.mean([r['parameters_left'] for r in result.values()]):.0f} %" if result else "–"
    )


QUESTIONS = (
    ("Does choosing by norm beat choosing at random?", "l2-local", "rewind", "random", "rewind"),
    ("Does one threshold for the network beat the same fraction everywhere?",
     "l2-global", "rewind", "l2-local", "rewind"),
    ("Does each layer's own curve beat the same fraction everywhere?",
     "sensitivity", "rewind", "l2-local", "rewind"),
    ("Does rewinding beat fine-tuning?", "l2-local", "rewind", "l2-local", "finetune"),
    ("Do inherited weights beat the same architecture from scratch, for as long as the retraining?",
     "l2-local", "rewind", "scratch", "one-cycle"),
    ("... and from scratch for as long as training and retraining together?",
     "l2-local", "rewind", "scratch-long", "one-cycle"),
)  # fmt: skip


def comparisons(rows: Rows) -> Iterator[str]:
    """Each question with the difference at every point, and an answer."""
    lefts = points(rows)
    body = []
    for question, arm, retrain, other, how in QUESTIONS:
        cells = []
        for left in lefts:
            result = difference(
                seeds_of(rows, left, arm, retrain), seeds_of(rows, left, other, how)
            )
            cells.append(
                "–" if result is None else "{:+.2f} [{:+.2f}, {:+.2f}] ({})".format(*result)
            )
        body.append([question, *cells])
    yield from table(["Points gained", *(f"{100 * left:.0f} %" for left in lefts)], body)


def defeats(rows: Rows) -> Iterator[str]:
    """Cases in which pruning is not significantly better than a control."""
    for question, arm, retrain, other, how in QUESTIONS[:1] + QUESTIONS[4:]:
        where = []
        for left in points(rows):
            result = difference(
                seeds_of(rows, left, arm, retrain), seeds_of(rows, left, other, how)
            )
            if result is not None and result[1] <= 0:
                loses = "loses" if result[2] < 0 else "no difference shown"
                where.append(f"{100 * left:.0f} % ({loses})")
        if where:
            yield f"- {question} **Not at** {', '.join(where)} of the MACs."


def baseline(rows: Rows) -> str:
    """A sentence about the reference and the unpruned network with the same training."""
    text = f"Reference {cell(seeds_of(rows, 1.0, 'reference', 'none'))} %"
    for retrain in ("rewind", "finetune"):
        text += (
            f"; unpruned and retrained ({retrain}) {cell(seeds_of(rows, 1.0, 'dense', retrain))} %"
        )
    return text + "."


def draw(networks: dict[str, Rows]) -> None:
    """Accuracy against remaining MACs, a panel for each network."""
    panels = (_panel(TITLES.get(name, name), rows) for name, rows in networks.items())
    alt = "Test accuracy against the share of MACs that are left, for each network and criterion"
    write_panels(FOLDER / "accuracy.svg", alt, panels, len(networks))


def _panel(title: str, rows: Rows) -> Spec:
    """Mean accuracies of each arm, with the standard deviation over seeds."""
    low = min(accuracy(row) for row in rows if row["arm"] != "scratch") - 0.7
    y = quantitative(
        "mean", "test accuracy, %", domain=[low, max(map(accuracy, rows)) + 0.3], nice=False
    )
    x = quantitative("left", "MACs left, %", reverse=True, padding=12)
    arms = {"domain": list(COLORS), "range": list(COLORS.values())}
    color = {"field": "arm", "type": "nominal", "scale": arms}
    dashes = {"domain": list(DASHES), "range": list(DASHES.values())}
    dash = {"field": "retrain", "type": "nominal", "scale": dashes}
    reference = float(np.mean([accuracy(r) for r in rows if r["arm"] == "reference"]))
    place = {"x": x, "y": y, "color": color}
    spread = {"y": y | {"field": "low"}, "y2": {"field": "high"}}
    rule: Spec = {"data": {"values": [{}]}}
    return {
        "title": {"text": title, "fontWeight": "normal", "fontSize": 11, "color": INK},
        "width": 340,
        "height": 260,
        "data": {"values": list(_means(rows))},
        "layer": [
            rule | {"mark": {"type": "rule", "strokeDash": [1, 3]},
                    "encoding": {"y": {"datum": reference}}},
            {"mark": {"type": "line", "clip": True}, "encoding": place | {"strokeDash": dash}},
            {"mark": {"type": "rule", "clip": True}, "encoding": place | spread},
            {"mark": {"type": "point", "filled": True, "clip": True, "size": 22},
             "encoding": place},
        ],
    }  # fmt: skip


def _means(rows: Rows) -> Iterator[Spec]:
    for retrain in DASHES:
        for arm in COLORS:
            for left in points(rows):
                values = [accuracy(r) for r in seeds_of(rows, left, arm, retrain).values()]
                if values:
                    mean = float(np.mean(values))
                    reach = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                    yield {"arm": arm, "retrain": retrain, "left": 100 * left, "mean": mean,
                           "low": mean - reach, "high": mean + reach}  # fmt: skip


HEAD = """# Accuracy against pruned fraction

Made by `python -m benchmarks pruning_grid report` from the records beside it, which
`python -m benchmarks pruning_grid NETWORK --data DIR` appends.

FashionMNIST in full, 28x28, each network's own strides (the published geometry); 48,000 training
images. Six epochs for the reference (one-cycle, peak 0.2, batch 128, flips, label smoothing 0.1);
then channels are removed once down to a fraction of the multiply-accumulates (`round_to` 1), and
the smaller network is retrained for **one epoch**: `rewind` replays the schedule to half the peak,
`finetune` keeps a hundredth of the peak. `scratch` trains the architecture of l2-local from new
weights for the same one epoch, `scratch-long` for all seven. Every cell read the 10,000 test images
once, at its end, and nothing was chosen by them; the curves for `sensitivity` were scanned on
validation images.

Accuracies in percent; with several seeds mean ± standard deviation (number of seeds). One accuracy
of 10,000 images has a standard error of about 0.3 points: differences are paired by image; their
intervals are over images, for these seeds.

![Accuracy against MACs left](accuracy.svg)
"""


def write_report() -> None:
    """Write README.md and accuracy.svg."""
    networks = read()
    lines = [HEAD]
    for name, rows in networks.items():
        lines += [f"## {TITLES.get(name, name)}", "", baseline(rows), "", *accuracies(rows), ""]
        lines += ["Differences, with 95 % intervals (seeds):", "", *comparisons(rows), ""]
        lines += [*defeats(rows), ""]
        first = rows[0]
        hours = sum(row.get("seconds", 0) for row in rows) / 3600
        versions = ", ".join(f"{key} {value}" for key, value in first["versions"].items())
        lines += [
            f"{len(rows)} records, {hours:.1f} hours of one thread beside other work; "
            f"{first['processor']}; {versions}.",
            "",
        ]
    (FOLDER / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    draw(networks)
