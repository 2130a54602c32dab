"""The page, figure and table of packed files, from their records.

Run: python -m benchmarks artifact report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.figures import quantitative, write_figure
from secateur.report import numbers
from secateur.report.vega import CURVE, MARK, THIRD, Spec
from secateur.statistics import Interval, proportion

Record = dict[str, Any]
ROOT = Path(__file__).parent.parent
OUT = ROOT / "results" / "artifact"
STUDY = {"mobilenet_v2": 2.51e6, "shufflenet_v2_x1_0": 1.4e6, "alexnet": 54.6e6}
"""Bytes of the published study's dense int8 files (arXiv 2001.04850, Table 4)."""
AIMS = {
    "mobilenet_v2": (0.65e6, 0.40e6),
    "shufflenet_v2_x1_0": (0.40e6, 0.23e6),
    "alexnet": (4.4e6, 2.5e6),
}
"""Goals for the size with a loss of at most 0.3 points, and stretch goals."""


def read(kind: str) -> list[Record]:
    """The records of one kind; the last one of each cell is used."""
    lines = (OUT / "measured.jsonl").read_text(encoding="utf-8").splitlines()
    result: dict[tuple[Any, ...], Record] = {}
    for record in map(json.loads, lines):
        if record["kind"] == kind:
            result[record["recipe_id"], record.get("price")] = record
    return list(result.values())


def write_report() -> None:
    """Write README.md and curve.svg."""
    files, prices = read("file"), read("price")
    text = (
        HEAD
        + files_table(files)
        + CODING
        + coding_table(files)
        + ACCURACY
        + accuracy_table(files)
        + SPEED
        + speed_table(files)
    )
    if prices:
        draw(prices)
        text += PRICES + curve_table(prices)
    if (OUT / "fuzz.json").exists():
        text += fuzzed(json.loads((OUT / "fuzz.json").read_text(encoding="utf-8")))
    text += "\n## Commands and environment\n\n" + "".join(made_by(record) for record in files)
    (OUT / "README.md").write_text(text, encoding="utf-8", newline="\n")


def packed_block() -> str:
    """The packed files' table for results/README.md."""
    rows = "".join(
        f"| {r['network']} | **{numbers.size(r['packed_bytes'])}** | "
        f"{numbers.times(4 * r['parameters'] / r['packed_bytes'])} | "
        f"{numbers.times(STUDY[r['network']] / r['packed_bytes'])} | "
        f"{accuracy(r['right']['reference'], r['test_images'])} | "
        f"{accuracy(r['right']['quantized'], r['test_images'])} | {drop(r['drop'])} | "
        f"{numbers.times(r['latency_ms']['reference'][0] / r['latency_ms']['packed'][0])} |\n"
        for r in read("file")
        if not r["epochs"]
    )
    return (SUMMARY + rows).rstrip()


SUMMARY = """| Network | `net.sec` | smaller than float | than the study's int8 | Reference, % | Packed, % | Drop, points | Faster |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""  # noqa: E501 a table has long lines


HEAD = """# One small file

Made by `python -m benchmarks artifact report` from `measured.jsonl` and `fuzz.json` beside
it.
FashionMNIST in full: 48,000 training, 12,000 validation, 10,000 test images; the price of a bit is
chosen on validation, the test images are opened once. Sizes are those of the complete file; MB =
10^6 bytes. *Trained on* are networks rounded at a higher price and then trained for two epochs with
quantization.

AlexNet's row is not typical. Its reference has not converged after five epochs, so that eight
epochs of retraining at half the width end far above it; *from pruned float* is the loss by rounding
and coding. At 64x64 its last map is one pixel, which its pool repeats 36 times for the first linear
layer. The exported layer reads it once, which removes 37 of the 57 million weights before pruning.
At 224x224, the published size, these weights are not redundant.

| Network | Packed | Study's dense int8 | Float reference | Aim, 0.3 points lost at most | Stretch |
| --- | ---: | ---: | ---: | --- | --- |
"""
CODING = """
## The same integers by other coders

Order-0 entropy is of the weights' integers, each tensor by its own histogram, which a decoder would
have to be sent too. The coder's column is Secateur's coder on the same integers; the packed file
also holds scales, biases, graph and provenance. xz -9e and zstd -19 compress the QDQ file.

| Network | Weights | Zeros | Entropy | Coder | Packed file | QDQ file | xz -9e | zstd -19 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
ACCURACY = """
## Accuracy

Top-1 on the 10,000 test images; a drop is paired on the same images, with its 95 % interval, and
McNemar's exact p. Parity: images on which the file, in ONNX Runtime, chooses the same class as its
simulation in PyTorch.

| Network | Reference, % | Packed, % | Drop | from pruned float | <= 0.3 at 95 % | Parity, % |
| --- | ---: | ---: | ---: | ---: | --- | ---: |
"""
SPEED = """
## Latency

One image, two threads, ONNX Runtime, the three files in turns, n = 200 each; decoding on one core,
median of five.

| Network | Reference, ms | Pruned float, ms | Packed, ms | Faster | Decoding, s |
| --- | ---: | ---: | ---: | ---: | ---: |
"""
PRICES = """
## Bytes against loss

The pruned networks at several prices of a bit, in nats per megabyte, on the validation images;
price 0 is int8 rounded to nearest. There is no training afterwards.

![Points lost on validation against the bytes of the file](curve.svg)

| Network | Price | Bytes | Cross-entropy, nats | Drop on validation, points |
| --- | ---: | ---: | ---: | ---: |
"""


def name_of(record: Record) -> str:
    return record["network"] + (", trained on" if record["epochs"] else "")


def files_table(files: list[Record]) -> str:
    rows = ""
    for record in files:
        network, size = record["network"], record["packed_bytes"]
        aim, stretch = AIMS[network]
        rows += (
            f"| {name_of(record)} | **{numbers.size(size)}** | {numbers.size(STUDY[network])}, "
            f"{numbers.times(STUDY[network] / size)} larger | "
            f"{numbers.size(4 * record['parameters'])}, "
            f"{numbers.times(4 * record['parameters'] / size)} larger | "
            f"{numbers.size(aim)}: {verdict(record, aim)} | "
            f"{numbers.size(stretch)}: {verdict(record, stretch)} |\n"
        )
    return rows


def verdict(record: Record, aim: float) -> str:
    """Whether size and loss meet the goal."""
    over, drop = record["packed_bytes"] - aim, record["drop"]["points"][0]
    if over > 0:
        return f"missed by {numbers.size(over)}"
    return "reached" if drop <= 0.3 else f"small enough, but {numbers.signed(drop)} points"


def coding_table(files: list[Record]) -> str:
    rows = ""
    for record in files:
        size = record["packed_bytes"]
        others = " | ".join(
            f"{numbers.size(record[key])}, {numbers.times(record[key] / size)}"
            for key in ("onnx_bytes", "xz_bytes", "zstd_bytes")
        )
        rows += (
            f"| {name_of(record)} | {numbers.count(record['weights'])} | "
            f"{numbers.percent(record['zeros'] / record['weights'])} | "
            f"{numbers.size(record['entropy_bytes'])} | "
            f"{numbers.size(record['weights_bytes'])} | {numbers.size(size)} | {others} |\n"
        )
    return rows


def accuracy_table(files: list[Record]) -> str:
    rows = ""
    for record in files:
        n = record["test_images"]
        high = record["drop"]["points"][2]
        parity = 100 * (1 - len(record["parity"]["differences"]) / record["parity"]["n"])
        rows += (
            f"| {name_of(record)} | {accuracy(record['right']['reference'], n)} | "
            f"{accuracy(record['right']['quantized'], n)} | {drop(record['drop'])} | "
            f"{drop(record['drop_from_pruned'])} | "
            f"{'yes' if high <= 0.3 else f'not shown: up to {numbers.signed(high)}'} | "
            f"{numbers.fixed(parity)} |\n"
        )
    for record in files:
        for name, result in record["controls"].items():
            rows += (
                f"\n{record['network']} against *{name}*: "
                f"{accuracy(result['right'], record['test_images'])} %; the packed file's drop "
                f"from it is {drop(result['drop'])}.\n"
            )
    return rows


def accuracy(right: int, n: int) -> str:
    value = Interval(*(100 * bound for bound in proportion(right, n)))
    return f"{numbers.fixed(value.value)} [{numbers.fixed(value.low)}, {numbers.fixed(value.high)}]"


def drop(result: Record) -> str:
    value, low, high = (numbers.signed(bound) for bound in result["points"])
    return f"{value} [{low}, {high}], p {numbers.probability(result['mcnemar_p'])}"


def speed_table(files: list[Record]) -> str:
    rows = ""
    for record in files:
        times = record["latency_ms"]
        cells = " | ".join(
            f"{numbers.significant(times[k][0])} ({numbers.significant(times[k][1])} to "
            f"{numbers.significant(times[k][2])})"
            for k in ("reference", "pruned", "packed")
        )
        rows += (
            f"| {name_of(record)} | {cells} | "
            f"{numbers.times(times['reference'][0] / times['packed'][0])} | "
            f"{numbers.significant(float(np.median(record['decode_seconds'])))} |\n"
        )
    return rows


def curve_table(prices: list[Record]) -> str:
    return "".join(
        f"| {r['network']} | {r['price']:g} | {numbers.count(r['packed_bytes'])} | "
        f"{numbers.fixed(r['loss'], 4)} | {numbers.signed(r['drop'][0])} "
        f"[{numbers.signed(r['drop'][1])}, {numbers.signed(r['drop'][2])}] |\n"
        for r in prices
    )


COLORS = dict(zip(STUDY, (CURVE, MARK, THIRD), strict=True))


def draw(prices: list[Record]) -> None:
    """Points lost against bytes, a line for each network, with 95 % intervals."""
    shown = [r for r in prices if r["drop"][0] < 3]
    rows = [
        {"network": r["network"], "kB": r["packed_bytes"] / 1e3}
        | dict(zip(("lost", "low", "high"), r["drop"], strict=True))
        for r in shown
    ]
    x = quantitative("kB", "file, kB", type="log", nice=False)
    lost = "points lost on validation (95 %)"
    domain = list(dict.fromkeys(row["network"] for row in rows))
    scale = {"domain": domain, "range": [COLORS[name] for name in domain]}
    color = {"field": "network", "type": "nominal", "scale": scale}
    limit: Spec = {"data": {"values": [{}]}}
    at = {"y": {"datum": 0.3}}
    body = {
        "data": {"values": rows},
        "layer": [
            {"mark": {"type": "area", "opacity": 0.16},
             "encoding": {"x": x, "y": quantitative("low", lost), "y2": {"field": "high"},
                          "color": color}},
            {"mark": {"type": "line", "point": {"filled": True, "size": 26}},
             "encoding": {"x": x, "y": quantitative("lost", lost), "color": color}},
            limit | {"mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": at},
            limit | {"mark": {"type": "text", "align": "right", "dy": -6, "text": "0.3 points"},
                     "encoding": at | {"x": {"value": "width"}}},
        ],
    }  # fmt: skip
    alt = f"Points lost on validation against the bytes of the file, for {', '.join(domain)}"
    write_figure(OUT / "curve.svg", alt, body, height=300)


def fuzzed(result: Record) -> str:
    rows = "".join(
        f"| {key} | {numbers.count(count)} |\n" for key, count in sorted(result["seen"].items())
    )
    return (
        "\n## Mutated files\n\n"
        f"`python tests/fuzz.py --files {result['files']} --out results/artifact/fuzz.json`: "
        f"{numbers.count(result['files'])} files, mutated from the outside in. None crashed, "
        "none gave a wrong network where the hash had to show it. The slowest took "
        f"{numbers.significant(result['slowest_seconds'])} s; no process grew by more than "
        f"{numbers.significant(result['largest_growth_mebibytes'])} MiB over all of its files. "
        f"{result['processor']}; commit {result['commit']}.\n\n"
        "| Damage: outcome | Files |\n| --- | ---: |\n" + rows
    )


def made_by(record: Record) -> str:
    sets = " ".join(f"--set {change}" for change in record["sets"])
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"- {name_of(record)}: `python -m benchmarks artifact measure {record['recipe']} "
        f"--data DIR {sets}`. {record['geometry']}, seed {record['seed']}. "
        f"{record['processor']}; {versions}; commit {record['commit']}.\n"
    )
