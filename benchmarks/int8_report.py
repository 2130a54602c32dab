"""The tables and goals of ``benchmarks.int8``, from its records."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import records as json_lines
from benchmarks.common.markdown import aim_text, drop_text, in_points, made_with, ratio_text, table
from benchmarks.common.records import Record, read
from benchmarks.int8_rows import Row, all_rows
from secateur.report.numbers import NONE, fixed, probability, size, times
from secateur.statistics import Interval, mcnemar, paired_drop, proportion, ratio_of_medians, spread
from secateur.wording import counted

WARMUP = 20
"""Untimed turns."""
FASTER = {"mobilenet_v2": 2.2, "shufflenet_v2_x1_0": 1.8, "alexnet": 3.5}
"""Goal: speed-up over fp32 in ONNX Runtime."""
DROP = {"mobilenet_v2": 0.2, "shufflenet_v2_x1_0": 0.2, "alexnet": 0.1}
"""Goal: largest loss of top-1 in points."""
# ---- report: numbers


def milliseconds(record: Record) -> dict[str, npt.NDArray[np.float64]]:
    """The samples of each successful row."""
    rows = record["rows"].items()
    return {key: np.array(row["milliseconds"]) for key, row in rows if "milliseconds" in row}


def unpack(records: Mapping[str, Record]) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each successful row classifies each image correctly."""
    return {
        key: json_lines.unpack(record["right"], record["test_images"])
        for key, record in records.items()
        if "right" in record
    }


def decided(record: Record) -> npt.NDArray[np.uint8]:
    """The class that a row predicts for each image."""
    return np.frombuffer(zlib.decompress(base64.b64decode(record["classes"])), np.uint8)


# ---- report: text


def errors(rows: Mapping[str, Row], result: Mapping[str, Record], columns: int) -> list[list[str]]:
    """A table row for each failed row."""
    failed = [(rows[key].title, made["error"]) for key, made in result.items() if "error" in made]
    blank = [NONE] * (columns - 2)
    return [[title, *blank, "failed: " + error.replace("|", "/")] for title, error in failed]


def latency_table(record: Record) -> Iterator[str]:
    """The table of latency of one network."""
    rows, samples = all_rows(), milliseconds(record)
    body = []
    for key, turns in samples.items():
        typical, engine = spread(turns), rows[key].engine
        ratios = {
            base: ratio_of_medians(samples[f"fp32-{base}"], turns)
            for base in dict.fromkeys((engine, "onnxruntime"))
            if f"fp32-{base}" in samples and key != f"fp32-{base}"
        }
        shown = [ratio_text(ratios[b]) if b in ratios else NONE for b in (engine, "onnxruntime")]
        aim, aimed = NONE, FASTER[record["network"]]
        if engine in ratios and engine == "onnxruntime" and not key.startswith("fp32"):
            value = ratios[engine].value
            aim = f"{fixed(aimed, 1)}×: {aim_text(value >= aimed, times(aimed - value, 2))}"
        took = [fixed(typical.value, 2), f"{fixed(typical.low, 2)} to {fixed(typical.high, 2)}"]
        weight = size(record["rows"][key]["bytes"])
        body.append([rows[key].title, weight, *took, *shown, aim])
    header = ["Row", "Files", "Median, ms", "p10 to p90", "fp32 of its runtime / it"]
    header += ["fp32 ONNX Runtime / it", "Aim"]
    yield from table(header, body + errors(rows, record["rows"], len(header)))


def accuracy_table(network: str, records: Mapping[str, Record]) -> Iterator[str]:
    """The table of accuracy of one trained file."""
    rows, right = all_rows(), unpack(records)
    base = right.get("fp32-onnxruntime")
    body = []
    for key, correct in right.items():
        result = proportion(int(correct.sum()), correct.size)
        shown = [
            f"{fixed(100 * result.value)} [{fixed(100 * result.low)}, {fixed(100 * result.high)}]"
        ]
        if base is None or key == "fp32-onnxruntime":
            shown += [NONE] * 4
        else:
            drop = in_points(paired_drop(base, correct))
            same = decided(records[key]) == decided(records["fp32-onnxruntime"])
            shown += [drop_text(drop), probability(mcnemar(base, correct)).removeprefix("= ")]
            shown += [f"{fixed(100 * same.mean())} %"]
            shown += [NONE if key.startswith("fp32") else drop_aim(network, drop)]
        body.append([rows[key].title, size(records[key]["bytes"]), *shown])
    header = ["Row", "Files", "Top-1, %", "Drop, points", "McNemar p", "Same class", "Aim"]
    yield from table(header, body + errors(rows, records, len(header)))


def drop_aim(network: str, drop: Interval) -> str:
    """Whether the drop meets the goal."""
    allowed = DROP[network]
    reached = aim_text(drop.value <= allowed + 1e-9, fixed(drop.value - allowed))
    return f"{fixed(allowed, 1)}: {reached}"


def faster_verdicts(record: Record) -> Iterator[str]:
    """Compare the latency of Secateur with the peers."""
    samples = milliseconds(record)
    for pair, own, peer in pairs(samples, lambda key: float(np.median(samples[key]))):
        result = ratio_of_medians(samples[peer], samples[own])
        slower = f"slower by {100 / result.value - 100:.1f} %"
        how = "at least as fast" if result.value >= 1 else slower
        shown = "" if not result.low <= 1 <= result.high else ", no difference shown"
        yield f"- {pair}: {how}{shown} (peer / Secateur {ratio_text(result)})."


def accuracy_verdicts(records: Mapping[str, Record]) -> Iterator[str]:
    """Compare the accuracy of Secateur with the peers."""
    right = unpack(records)
    for pair, own, peer in pairs(right, lambda key: -float(right[key].mean())):
        result = in_points(paired_drop(right[peer], right[own]))
        worse = f"less accurate by {fixed(result.value)} points"
        how = "at least as accurate" if result.value <= 0 else worse
        shown = "" if not result.low <= 0 <= result.high else ", no difference shown"
        yield f"- {pair}: {how}{shown} (peer minus Secateur {drop_text(result)} points)."


def pairs(
    measured: Mapping[str, Any], cost: Callable[[str], float]
) -> Iterator[tuple[str, str, str]]:
    """Yield the compared pairs of rows, title and keys: on each runtime, then the best of each."""
    rows = all_rows()
    row_pairs = [("ours-onnxruntime", "quantize_static"), ("ours-openvino", "nncf")]
    for own, peer in row_pairs:
        if {own, peer} <= measured.keys():
            yield f"{rows[own].title} against {rows[peer].title}", own, peer
    sides = [[key for key in side if key in measured] for side in zip(*row_pairs, strict=True)]
    if all(sides):
        own, peer = (min(side, key=cost) for side in sides)
        pair = f"the better of Secateur ({rows[own].title}) against the better peer"
        yield f"{pair} ({rows[peer].title})", own, peer


HEAD = """# int8 compared with fp32, and with int8 of other tools

Made by `python -m benchmarks int8 report --out results/int8` from the records beside it,
which these commands append:

    python -m benchmarks int8 time --out results/int8/latency.jsonl
    python -m benchmarks int8 accuracy RECIPE --data DIR --out results/int8/accuracy.jsonl

The float file is as PyTorch exports it, batch-norms folded, channel shuffles kept. Secateur's
file is made from it as `secateur run` does: shuffles folded into the weights, depthwise layers
padded to whole blocks, weights free of saturation. Peers get the same float file and the same
calibration images. `quantize_static` is ONNX Runtime's own, after its preprocessing, with default
session options; its second row uses the options that its manual advises on AVX2 without VNNI. NNCF
quantizes the OpenVINO model with all calibration images. OpenVINO runs in fp32 or int8, tuned for
latency, with a fixed batch size. Sizes are those of the files that a row opens. All intervals are
at 95 %.
"""

LATENCY = """## Latency

One image, random weights (which do not affect latency), batch-norm statistics and calibration from
noise. The rows of one network are timed in turns in one process, so that slow periods of the
machine affect all; each turn runs the image twice and counts the second, because OpenVINO's threads
spin for a millisecond into the next turn. Ratios are of medians, above 1 if int8 is faster, with a
bootstrap interval over turns. The goal applies to ONNX Runtime.
"""

ACCURACY = """## Accuracy

Top-1 with Wilson's interval; the drop is fp32 on ONNX Runtime minus the row, on the same images,
with Agresti and Min's interval and McNemar's exact p; *same class* counts images on which a row
agrees with fp32 on ONNX Runtime.
"""


def latency_section(records: list[Record]) -> Iterator[str]:
    """The section on latency."""
    newest = {(r["network"], r["resolution"], r["threads"]): r for r in records}
    for (network, side, threads), record in newest.items():
        n = max((len(turns) for turns in milliseconds(record).values()), default=0)
        setting = f"{side}x{side}x3, batch 1, {counted(threads, 'thread')}, n = {n} turns a row"
        yield from (f"### {network}", "", f"{setting}, after {WARMUP} that do not count.", "")
        yield from (*latency_table(record), "", *faster_verdicts(record), "")
        yield from (made_with([record]), "")


def accuracy_section(records: list[Record]) -> Iterator[str]:
    """The section on accuracy."""
    files: dict[tuple[str, str, int, int], dict[str, Record]] = {}
    for r in records:
        cell = (r["network"], r["float"], r["calibration"], r["images"])
        files.setdefault(cell, {})[r["row"]] = r
    for (network, digest, calibration, _), unordered in files.items():
        result = {key: unordered[key] for key in all_rows() if key in unordered}
        ran = [record for record in result.values() if "right" in record]
        first = next(iter(result.values()))
        changes = "".join(f" `--set {change}`" for change in first["sets"])
        yield from (f"### {network}, `{first['recipe']}`{changes}, float file {digest}", "")
        if ran:
            side, n = ran[0]["resolution"], ran[0]["test_images"]
            yield f"{side}x{side}, n = {n:,} test images, {calibration} images to calibrate on."
            yield ""
        yield from (*accuracy_table(network, result), "", *accuracy_verdicts(result), "")
        yield from (made_with(list(result.values())), "")


def write_report(out: Path) -> None:
    """Write README.md from the records beside it."""
    lines = [HEAD]
    sections = (
        ("latency.jsonl", LATENCY, latency_section),
        ("accuracy.jsonl", ACCURACY, accuracy_section),
    )
    for name, text, section in sections:
        records = read(out / name)
        if records:
            lines += [text, *section(records)]
    (out / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
