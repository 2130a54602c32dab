"""The ladder's tables and figure, from its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.common.figures import quantitative, write_panels
from benchmarks.common.markdown import drop_text, in_points, made_with, ratio_text, table
from benchmarks.common.records import Record, read, unpack
from secateur.benchmarking.timing import SETTLE
from secateur.report.numbers import (
    NONE,
    fixed,
    percent,
    short_count,
    signed,
    significant,
    size,
    times,
)
from secateur.report.vega import CURVE, INK, Spec
from secateur.statistics import (
    QUIET,
    mcnemar,
    no_worse,
    noise,
    paired_drop,
    proportion,
    ratio_of_medians,
    spread,
)

AIMS = {"mobilenet_v2": 12.0, "shufflenet_v2_x1_0": 10.0, "alexnet": 30.0}
"""Goal: speed-up over eager fp32."""
MARGIN = 0.005
"""Largest loss of accuracy, a fraction."""
RUNGS = {
    "eager": "eager PyTorch, fp32",
    "runtime": "ONNX Runtime, fp32",
    "folded": "... shuffles folded",
    "pruned": "... pruned",
    "int8": "... int8",
    "packed": "... packed",
}
HEAD = f"""# Parts of the speed-up and of the compression

Made by `python -m benchmarks ladder report --out results/ladder` from `measured.jsonl` beside it,
which `python -m benchmarks ladder measure RECIPE --data DIR --out results/ladder/measured.jsonl`
appends for each network.

One image at 224x224, torchvision's own strides, the weights of the recipe's trained, pruned and
retrained network. Rungs take turns in one process; each turn rests, then runs the image
{SETTLE + 1} times and counts the last. Each rung's factor is the one before it divided by it, of
medians, with a 95 % bootstrap interval over whole turns; the factors of all rungs multiply to the
total. The packed file decodes to the int8 file bit for bit, so its time is the same. Accuracy is of
the files that ship, in the recipe's own geometry, on all test images. *No worse than 0.5 points* is
a one-sided test at 95 % on the same images, the seed at hand.

![The ladder](ladder.svg)
"""


def samples(record: Record) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of each rung's turns; packed is int8 once decoded."""
    result = {key: np.array(turns) for key, turns in record["samples_ms"].items()}
    return result | {"packed": result["int8"]}


def rights(record: Record) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each variant is right, image by image."""
    n = record["test_images"]
    return {key: unpack(text, n) for key, text in record["right"].items()}


def ladder_table(record: Record) -> Iterator[str]:
    """A row for each rung."""
    turns, bytes_ = samples(record), record["bytes"]
    rows, before = [], None
    for rung, title in RUNGS.items():
        typical = spread(turns[rung])
        took = [fixed(typical.value, 3), f"{fixed(typical.low, 3)} to {fixed(typical.high, 3)}"]
        step = total = step_bytes = NONE
        if before is not None:
            total = ratio_text(ratio_of_medians(turns["eager"], turns[rung]))
            step_bytes = times(bytes_[before] / bytes_[rung])
            if rung == "packed":
                step = "same"
            else:
                step = ratio_text(ratio_of_medians(turns[before], turns[rung]))
        all_bytes = times(bytes_["eager"] / bytes_[rung])
        rows.append([title, *took, step, total, size(bytes_[rung]), step_bytes, all_bytes])
        before = rung
    header = ["Rung", "Median, ms", "p10 to p90", "This step", "All so far"]
    yield from table([*header, "Bytes", "This step", "All so far"], rows)


SHIPS = {"int8": "quantized", "pruned": "pruned"}
"""From rungs with final files to their variant in records."""


def fastest(record: Record) -> str:
    """The fastest rung, which is not always int8 for small networks."""
    turns = samples(record)
    return min(SHIPS, key=lambda rung: float(np.median(turns[rung])))


def accuracy_line(record: Record, rung: str) -> str:
    """The loss of accuracy at a rung."""
    right = rights(record)
    base, shipped = right["reference"], right[SHIPS[rung]]
    result = proportion(int(shipped.sum()), shipped.size)
    was = proportion(int(base.sum()), base.size)
    drop = in_points(paired_drop(base, shipped))
    verdict = no_worse(base, shipped, MARGIN)
    answer = "yes" if verdict.holds else "no"
    return (
        f"Accuracy of *{rung}* ({record['geometry']}, n = {shipped.size:,} test images): "
        f"{fixed(100 * was.value)} → {fixed(100 * result.value)} "
        f"[{fixed(100 * result.low)}, {fixed(100 * result.high)}] %, "
        f"{drop_text(drop)} points lost, McNemar "
        f"p = {significant(mcnemar(base, shipped), 2)}. "
        f"No worse than {fixed(100 * MARGIN, 1)} points at 95 %: "
        f"**{answer}** (bound {signed(100 * verdict.bound)})."
    )


def aim_line(record: Record) -> str:
    """Whether the goal is met; if not, where the time is used."""
    rung, aim, right = fastest(record), AIMS[record["network"]], rights(record)
    turns = samples(record)
    result = ratio_of_medians(turns["eager"], turns[rung])
    drop = paired_drop(right["reference"], right[SHIPS[rung]]).value
    text = f"Aim: {times(aim)} over eager fp32 at no more than {fixed(100 * MARGIN, 1)} points lost"
    which = f"the fastest rung is *{rung}*, {ratio_text(result)}, {signed(100 * drop)} points lost"
    if result.value >= aim and drop <= MARGIN:
        return f"{text}: **reached**: {which}."
    operators = record["operators"]
    parts = [
        f"{name} {percent(sums['share'])} in {sums['count']} nodes"
        for name, sums in list(operators.items())[:4]
    ]
    nodes = sum(sums["count"] for sums in operators.values())
    return (
        f"{text}: **missed**: {which}. `secateur explain` of the int8 file, {nodes} nodes: "
        f"{'; '.join(parts)}."
    )


def ceiling_lines(record: Record) -> Iterator[str]:
    """Compare with multiply-accumulates and with limits of the machine."""
    turns, top, done = samples(record), record["ceilings"], record["macs"]
    theory = done["dense"] / done["pruned"]
    measured = ratio_of_medians(turns["folded"], turns["pruned"])
    yield (
        f"- Pruning: {short_count(done['dense'])} → {short_count(done['pruned'])} MACs, "
        f"{times(theory)} in theory, {ratio_text(measured)} measured in fp32; parameters "
        f"{short_count(record['parameters']['dense'])} → "
        f"{short_count(record['parameters']['pruned'])}."
    )
    for rung, kind, count in (("folded", "fp32", "dense"), ("pruned", "fp32", "pruned"),
                              ("int8", "int8", "pruned")):  # fmt: skip
        seconds = float(np.median(turns[rung])) / 1e3
        speed, ceiling = done[count] / seconds, top[f"{kind}_macs_per_second"]
        read_, memory = record["bytes"][rung] / seconds, top["bytes_per_second"]
        yield (
            f"- {rung}: {significant(speed / 1e9)} GMAC/s, {percent(speed / ceiling)} of the "
            f"{significant(ceiling / 1e9)} that a large {kind} convolution reaches here; its bytes "
            f"once an image are {significant(read_ / 1e9)} GB/s, {percent(read_ / memory)} of "
            f"the {significant(memory / 1e9)} that memory gives."
        )


def provenance(record: Record) -> str:
    """Hardware, versions, commit, n and noise."""
    turns = samples(record)
    worst = max(noise(result) for result in turns.values())
    machine = "quiet" if worst <= QUIET else "**noisy**"
    return (
        f"n = {len(turns['eager'])} turns; machine {machine} (p10 to p90 within {percent(worst)} "
        f"of the median); seed {record['seed']}, recipe {record['recipe_id']}; "
        f"{made_with([record])}"
    )


def draw(records: list[Record], path: Path) -> None:
    """Milliseconds and bytes of each rung, on logarithmic scales, a column for each network."""
    milliseconds = (
        _bars(
            [float(np.median(samples(record)[rung])) for rung in RUNGS],
            lambda value: f"{significant(value)} ms",
            "ms at 224, batch 1",
            [record["network"], *record["sets"]],
        )
        for record in records
    )
    sizes = (_bars([r["bytes"][rung] for rung in RUNGS], size, "bytes", []) for r in records)
    alt = "Milliseconds and bytes of each rung of the ladder, for each network"
    write_panels(path, alt, [*milliseconds, *sizes], len(records))


def _bars(values: list[float], text: Callable[[float], str], unit: str, title: list[str]) -> Spec:
    """A bar for each rung, from half the smallest value on."""
    low, high = min(values) / 2, 8 * max(values)
    rows = [
        {"rung": rung, "value": value, "text": text(value)}
        for rung, value in zip(RUNGS, values, strict=True)
    ]
    rung = {"field": "rung", "type": "nominal", "sort": None, "title": None,
            "axis": {"grid": False, "offset": 2}}  # fmt: skip
    x = quantitative("value", unit, type="log", domain=[low, high], nice=False)
    return {
        "title": {"text": title, "fontWeight": "normal", "fontSize": 11, "color": INK},
        "width": 180,
        "height": 150,
        "data": {"values": rows},
        "encoding": {"y": rung, "x": x | {"axis": {"tickCount": 4, "format": "~s"}}},
        "layer": [
            {"mark": {"type": "bar", "color": CURVE, "height": 14},
             "encoding": {"x2": {"datum": low}}},
            {"mark": {"type": "text", "align": "left", "dx": 3},
             "encoding": {"text": {"field": "text"}}},
        ],
    }  # fmt: skip


def write_report(out: Path) -> None:
    """Write the tables and the figure."""
    newest = {(r["network"], r["recipe_id"]): r for r in read(out / "measured.jsonl")}
    records = sorted(newest.values(), key=lambda record: list(AIMS).index(record["network"]))
    lines = [HEAD]
    for record in records:
        changes = "".join(f" --set {change}" for change in record["sets"])
        lines += [f"## {record['network']}, `{record['recipe']}{changes}`", ""]
        lines += [*ladder_table(record), "", aim_line(record), ""]
        lines += [f"- {accuracy_line(record, rung)}" for rung in SHIPS]
        lines += [*ceiling_lines(record), "", provenance(record), ""]
    draw(records, out / "ladder.svg")
    (out / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
