"""Publishes the cells and pages of the study.

Run: python -m benchmarks study [OUT]
OUT is the folder of `secateur reproduce`; without it, only the pages are written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common.figures import quantitative, write_figure
from secateur.records import read_records
from secateur.report import numbers
from secateur.report.vega import Spec
from secateur.study.cells import Cells, Group, read_cells
from secateur.study.formats import Entry
from secateur.study.measured import accuracy, difference, machines, mean, rate, speed_up
from secateur.study.page import write_reproduction
from secateur.study.plots import COLORS
from secateur.study.published import DATASETS, NETWORKS, QUANTIZATION, TITLES, row_of
from secateur.study.tables import groups_of

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "results" / "study"
DATASET = "fashionmnist"
KEPT = ("recipe.toml", "records.jsonl", "right.safetensors", "demonstration.jsonl", "net.sec")


def publish(out: Path) -> None:
    """Copy every finished cell: recipe, records, decisions and packed file."""
    for cell in sorted((out / "cells").iterdir()):
        if (cell / "records.jsonl").is_file():
            target = STUDY / "cells" / cell.name
            target.mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                if (cell / name).is_file():
                    shutil.copyfile(cell / name, target / name)


def groups(cells: Cells, dataset: str = DATASET) -> dict[str, Group]:
    """From network to its group on a data set: the most accurate recipe, else the closest."""
    result = {network: shown(groups_of(cells, dataset, network)) for network in NETWORKS}
    return {network: group for network, group in result.items() if group is not None}


def shown(candidates: list[Group]) -> Group | None:
    """The longest trained group of the preset ``accurate``, else the first; None if empty."""
    accurate = [group for group in candidates if group.setting.preset == "accurate"]
    return max(accurate, key=all_epochs, default=next(iter(candidates), None))


def all_epochs(group: Group) -> int:
    """Epochs of the reference's training and of all retraining."""
    return sum(record.metric == "train_loss" for record in group.cells[0].records)


def epochs(group: Group) -> int:
    """Epochs of the reference's training."""
    records = group.cells[0].records
    return sum((r.metric, r.at.get("stage")) == ("train_loss", "train") for r in records)


def cell_text(entry: Entry) -> str:
    """The number with its bounds and seeds, without their number if it is stated elsewhere."""
    return f"{entry.text} {entry.note}".strip()


def table(cells: Cells) -> list[str]:
    """The table of results: a row for each network and data set with cells."""
    head = ["", "Reference, %", "Pruned, %", "Packed int8, %", "Drop, points", "Parameters", "Time",
            "File", "Paper: reference, int8, file"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for dataset in reversed(DATASETS):
        for network, group in groups(cells, dataset).items():
            lines.append("| " + " | ".join(row(dataset, network, group)) + " |")
    return lines


def row(dataset: str, network: str, group: Group) -> list[str]:
    """One row of the table."""
    others, quantized = (
        row_of(QUANTIZATION, "paper", dataset, network, variant)
        for variant in ("reference", "quantized")
    )
    assert others is not None
    assert quantized is not None
    printed = f"{others.top1_percent.text}, {quantized.top1_percent.text}, "
    faster = speed_up(group, "packed", machines(group)[0])
    geometry = group.setting.geometry.removesuffix(" stem=paper")
    trained = f"{epochs(group)} epochs"
    return [
        f"{TITLES[network]}, {TITLES[dataset]}, {geometry}, {trained}",
        cell_text(accuracy(group, "reference")),
        accuracy(group, "pruned").text,
        cell_text(accuracy(group, "packed")),
        cell_text(difference(group, "reference", "packed")),
        f"{rate(group, 'packed', 'parameters').text} fewer",
        f"{faster.text} faster",
        f"**{numbers.size(mean(group, 'packed', 'size_bytes').value or 0)}**, "
        f"{rate(group, 'packed', 'size_bytes').text} smaller",
        f"{printed}{quantized.size_mb.text} MB",
    ]


def draw(cells: Cells, path: Path) -> None:
    """Top-1 against bytes on a logarithmic scale: the paper's two points, and Secateur's chain."""
    rows = [row for network, group in groups(cells).items() for row in points(network, group)]
    x = quantitative(
        "bytes",
        "bytes of the file (smaller to the right)",
        type="log",
        reverse=True,
        nice=False,
        padding=40,
    )
    y = quantitative("top1", "top-1 on the 10,000 test images, %")
    names = [TITLES[network] for network in NETWORKS]
    scale = {"domain": names, "range": [COLORS[network] for network in NETWORKS]}
    color = {"field": "network", "type": "nominal", "scale": scale}
    who = {"field": "who", "type": "nominal"}
    domain = {"domain": ["measured", "the paper"]}
    dashes = who | {"scale": domain | {"range": [[1, 0], [4, 3]]}}
    shape = who | {"scale": domain | {"range": ["circle", "diamond"]}}
    place = {"x": x | {"axis": {"format": "~s", "tickCount": 5}}, "y": y, "color": color}
    body = {
        "width": 560,
        "data": {"values": rows},
        "layer": [
            {"mark": {"type": "line"}, "encoding": place | {"strokeDash": dashes}},
            {"mark": {"type": "rule"},
             "encoding": place | {"y": y | {"field": "low"}, "y2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True, "opacity": 1, "size": 45},
             "encoding": place | {"shape": shape}},
            *(_labels(variants, dy, place) for variants, dy in LABELS.items()),
        ],
    }  # fmt: skip
    alt = "Top-1 against bytes of the file: Secateur's networks and the paper's"
    write_figure(path, alt, body, height=320)


LABELS = {("reference", "pruned", "quantized"): -9, ("packed",): 11}
"""Variants to the pixels by which their names lie below their points."""


def _labels(variants: tuple[str, ...], dy: int, place: Spec) -> Spec:
    """The names of measured variants beside their points."""
    measured = {"field": "who", "equal": "measured"}
    some = {"field": "variant", "oneOf": list(variants)}
    mark = {"type": "text", "align": "left", "dx": 3, "dy": dy, "fontSize": 9}
    return {
        "transform": [{"filter": {"and": [measured, some]}}],
        "mark": mark,
        "encoding": place | {"text": {"field": "variant"}},
    }


def points(network: str, group: Group) -> Iterator[Spec]:
    """The rows of one network: measured, and printed in the paper."""
    for variant in ("reference", "pruned", "quantized", "packed"):
        top1 = accuracy(group, variant)
        yield {"network": TITLES[network], "who": "measured", "variant": variant,
               "bytes": mean(group, variant, "size_bytes").value,
               "top1": top1.value, "low": top1.low, "high": top1.high}  # fmt: skip
    for variant in ("reference", "quantized"):
        printed = row_of(QUANTIZATION, "paper", DATASET, network, variant)
        if printed and printed.size_mb and printed.top1_percent:
            yield {"network": TITLES[network], "who": "the paper", "variant": variant,
                   "bytes": 1e6 * printed.size_mb.value,
                   "top1": printed.top1_percent.value}  # fmt: skip


def outcome_block() -> str:
    """The study's results for results/README.md: figure, table and conditions."""
    cells = read_cells(STUDY)
    about = next(iter(groups(cells).values())).cells[0].records[0]
    lines = [
        "![Accuracy against bytes: the paper's networks and Secateur's](study/outcome.svg)",
        "",
        *table(cells),
        "",
        "10,000 test images; 95 % intervals over seeds and images; time of one image on ONNX "
        f"Runtime, against the reference there. {about.processor}; torch "
        f"{about.versions['torch']}. All tables, figures, controls and "
        "what is missing: [the study's report](study/reproduction/report.md).",
    ]
    return "\n".join(lines)


GEOMETRY = """# The same networks with another first convolution

Written by `python -m benchmarks study` from the records beside it. The study uses the published
strides on FashionMNIST and a first convolution of stride 1 on CIFAR-10. Here it is the other way
round: `secateur run` with another `network.stem`. These runs are of earlier commits and other
numbers of epochs than the study's, so that only the references are comparable; they show the effect
of the stem.

| Reference | Data set | Geometry | Epochs | Top-1, % (95 % interval) | Parameters | MACs | Commit |
| --- | --- | --- | ---: | ---: | ---: | ---: | --- |
"""


def geometry() -> str:
    """The page of the networks with another stem."""
    lines = []
    for folder in sorted((ROOT / "results" / "geometry").glob("*/")):
        records = read_records(folder / "records.jsonl")
        result = {r.metric: r for r in records if r.variant == "reference" and not r.at}
        top1, macs = result["top1_percent"], numbers.short_count(result["macs"].value)
        bounds = f"[{numbers.fixed(top1.low or 0)}, {numbers.fixed(top1.high or 0)}]"
        parameters = numbers.count(result["parameters"].value)
        accuracy = f"{numbers.fixed(top1.value)} {bounds}"
        epochs = sum((r.metric, r.at.get("stage")) == ("train_loss", "train") for r in records)
        place = (top1.network, top1.dataset, top1.geometry, str(epochs))
        cells = (*place, accuracy, parameters, macs, top1.commit)
        lines.append("| " + " | ".join(cells) + " |\n")
    return GEOMETRY + "".join(lines)


def main(arguments: list[str]) -> None:
    """Copy the cells of the folders named, then write the pages."""
    for out in arguments:
        publish(Path(out))
    write_reproduction(STUDY)
    draw(read_cells(STUDY), STUDY / "outcome.svg")
    (ROOT / "results" / "geometry" / "README.md").write_text(geometry(), encoding="utf-8")
