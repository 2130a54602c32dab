"""Measured beside published numbers: every number from records, the same in every format."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers import study
from helpers.browser import accessibility_faults, layout_faults, needs_browser, open_page
from secateur.records import read_records, write_records
from secateur.report import numbers
from secateur.statistics import across_seeds, drop_across_seeds, rates_across_seeds
from secateur.study.cells import Cells, read_cells
from secateur.study.curves import scan_points
from secateur.study.formats import Column, Entry, Table
from secateur.study.outcome import missing, outcome
from secateur.study.page import write_reproduction
from secateur.study.plots import Sensitivity, _labels, draw_accuracies, draw_sensitivity
from secateur.study.tables import make_tables

MOBILE, SHUFFLE = "mobilenet_v2-fashionmnist-paper", "shufflenet_v2-fashionmnist-paper"
SVG = "{http://www.w3.org/2000/svg}"
OTHER = "Other CPU, 8 cores"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of one cell on two machines, another geometry, and one on overfitting."""
    folder = tmp_path_factory.mktemp("study")
    for seed in range(3):
        study.a_cell(folder, MOBILE, seed, processor=OTHER if seed == 2 else study.CPU)
        study.a_cell(folder, MOBILE, seed, overfitting=True)
    study.a_cell(folder, "mobilenet_v2-fashionmnist-fast", 0)
    study.a_cell(folder, SHUFFLE, 0)
    return folder


@pytest.fixture(scope="module")
def cells(out: Path) -> Cells:
    return read_cells(out)


@pytest.fixture(scope="module")
def tables(cells: Cells) -> tuple[Table, Table, Table]:
    return make_tables(cells)


@pytest.fixture(scope="module")
def written(out: Path) -> Path:
    return write_reproduction(out, ["planned-cell"]).parent


def entry(table: Table, key: str, who: str, **place: str) -> Entry:
    """The one entry of a column in the first row that has these labels."""
    keys = [(column.key, column.source) for column in table.columns]
    for row in table.rows:
        labels = {c.key: e.text for c, e in zip(table.columns, row, strict=True)}
        if all(labels[name] == text for name, text in place.items()):
            return row[keys.index((key, who))]
    raise AssertionError(place)


MADE = {"dataset": "FashionMNIST", "network": "MobileNetV2", "recipe": "as published"}


def right(out: Path, variant: str, kind: str = "") -> np.ndarray:
    folders = (out / "cells" / f"{kind}{MOBILE}-{seed}" for seed in range(3))
    return np.stack([load_file(folder / "right.safetensors")[variant] for folder in folders])


# ---- numbers


def test_an_accuracy_has_the_interval_over_seeds_and_images(
    out: Path, tables: tuple[Table, ...]
) -> None:
    found = entry(tables[0], "top1_percent", "measured", **MADE, variant="pruned")
    expected = [100 * bound for bound in across_seeds(right(out, "pruned"))]
    assert [found.value, found.low, found.high] == pytest.approx(expected)
    assert found.seeds == 3
    value, low, high = map(numbers.fixed, expected)
    assert f"{found.text} {found.note}" == f"{value} [{low}, {high}] (3 seeds)"


def test_a_drop_is_paired_within_each_seed(out: Path, tables: tuple[Table, ...]) -> None:
    found = entry(tables[1], "top1_drop_points", "measured", **MADE, variant="quantized")
    expected = drop_across_seeds(right(out, "reference"), right(out, "quantized"))
    assert [found.value, found.low, found.high] == pytest.approx([100 * b for b in expected])


def test_counts_and_rates_are_means_with_their_extremes(tables: tuple[Table, ...]) -> None:
    found = entry(tables[0], "parameters", "measured", **MADE, variant="pruned")
    assert (found.value, found.low, found.high, found.seeds) == (800_010, 800_000, 800_020, 3)
    rates = [(2e6 + 10 * s) / (8e5 + 10 * s) for s in range(3)]
    found = entry(tables[0], "compression_by_parameters", "measured", **MADE, variant="pruned")
    assert found.value == pytest.approx(sum(rates) / 3)
    assert (found.low, found.high) == pytest.approx((min(rates), max(rates)))
    found = entry(tables[1], "size_mb", "measured", **MADE, variant="packed")
    assert (found.text, found.note) == ("0.200", "(3 seeds)")
    rates = [(8e6 + 1000 * s) / 2e5 for s in range(3)]
    found = entry(tables[1], "compression_by_bytes", "measured", **MADE, variant="packed")
    assert found.value == pytest.approx(sum(rates) / 3)


def test_a_packed_file_decides_as_the_one_it_decodes_to(tables: tuple[Table, ...]) -> None:
    packed, quantized = (
        entry(tables[1], "top1_percent", "measured", **MADE, variant=variant)
        for variant in ("packed", "quantized")
    )
    assert packed == quantized


def test_latencies_of_different_machines_stay_apart(tables: tuple[Table, ...]) -> None:
    where = f"{study.CPU}; 2 threads, onnxruntime 1.32.0"
    one = entry(tables[1], "latency_ms", "measured", **MADE, variant="quantized", machine=where)
    assert one.value == pytest.approx(0.25 * 1.05)
    assert (one.low, one.high) == pytest.approx((0.9 * 0.25, 1.2 * 0.275))
    assert one.seeds == 2
    where = where.replace(study.CPU, OTHER)
    other = entry(tables[1], "latency_ms", "measured", **MADE, variant="quantized", machine=where)
    assert (other.value, other.seeds) == (pytest.approx(0.3), 1)
    speed = entry(tables[1], "speed_up", "measured", **MADE, variant="quantized", machine=where)
    assert (speed.value, speed.seeds) == (pytest.approx(4), 1)
    accuracy = entry(
        tables[1], "top1_percent", "measured", **MADE, variant="quantized", machine=where
    )
    assert accuracy.value is None  # it stands in the first row, over all seeds


def test_a_lone_machine_is_named_once(tmp_path: Path, tables: tuple[Table, ...]) -> None:
    study.a_cell(tmp_path, MOBILE, 0)
    table = make_tables(read_cells(tmp_path))[1]
    for text in (table.to_markdown(), table.to_latex(), table.to_html()):
        assert text.count(study.CPU.replace("&", "")) == 1
        assert "Latency measured on" not in text
    assert table.to_csv().count(study.CPU) == 3  # reference, quantized, packed
    assert "Latency measured on" in tables[1].to_markdown()  # two machines: each row says which


def test_what_is_printed_stands_as_printed(tables: tuple[Table, ...]) -> None:
    place = {"dataset": "CIFAR-10", "network": "MobileNetV2", "variant": "pruned"}
    for key, text in (
        ("top1_percent", "91.53"),
        ("parameters", "671K"),
        ("compression_by_parameters", "1.6"),
        ("top1_drop_points", "−0.22"),
    ):
        assert entry(tables[0], key, "paper", **place).text == text
    found = entry(tables[1], "speed_up", "report", dataset="CIFAR-10", network="AlexNet",
                  variant="quantized")  # fmt: skip
    assert found.value == pytest.approx(24.53 / 39.43)


def test_contradicted_numbers_are_marked_and_no_others(tables: tuple[Table, ...]) -> None:
    marked = {
        (column.key, column.source, row[0].text, row[1].text, row[2].text)
        for table in tables
        for row in table.rows
        for column, found in zip(table.columns, row, strict=True)
        if found.marks
    }
    rate, top1, size = "compression_by_parameters", "top1_percent", "size_mb"
    assert marked == {
        (rate, "paper", "CIFAR-10", "MobileNetV2", "pruned"),
        (rate, "report", "CIFAR-10", "MobileNetV2", "pruned"),
        (rate, "report", "FashionMNIST", "MobileNetV2", "pruned"),
        (top1, "report", "CIFAR-10", "ShuffleNetV2", "reference"),
        *((size, source, dataset, "AlexNet", "quantized")
          for source in ("paper", "report") for dataset in ("CIFAR-10", "FashionMNIST")),
    }  # fmt: skip
    found = entry(tables[0], rate, "report", **MADE, variant="pruned")
    assert "prints a compression rate of 3.3" in tables[0].footnotes[found.marks[0]]


def test_overfitting_has_the_reference_of_the_same_seeds(
    out: Path, tables: tuple[Table, ...]
) -> None:
    made = {"network": "MobileNetV2"}
    kind, pruned = "overfit-", "overfitted-pruned"
    found = entry(tables[2], "top1_drop_points", "measured", **made, variant="overfitted, pruned")
    expected = drop_across_seeds(right(out, "reference"), right(out, pruned, kind))
    assert [found.value, found.low, found.high] == pytest.approx([100 * b for b in expected])
    for control in ("random", "dense"):
        key = f"gain_over_{control}_points"
        found = entry(tables[2], key, "measured", **made, variant="overfitted, pruned")
        other = right(out, f"overfitted-{control}", kind)
        expected = drop_across_seeds(right(out, pruned, kind), other)
        assert found.value == pytest.approx(100 * expected.value)
        assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    label = entry(tables[2], "recipe", "label", **made, variant="overfitted")
    assert label.text == "20 % label noise, 5,000 training images"
    theirs = entry(tables[2], "gain_over_overfitted_points", "paper", **made,
                   variant="overfitted, pruned")  # fmt: skip
    assert theirs.text == "+0.71"


# ---- what belongs together


def test_another_geometry_is_not_mixed_in(cells: Cells, tables: tuple[Table, ...]) -> None:
    of = [g for g in cells.groups if g.setting.network == "mobilenet_v2" and not g.overfitting]
    assert [(g.setting.preset, g.setting.geometry, g.seeds) for g in of] == [
        ("paper", "28x28 stem=paper", (0, 1, 2)),
        ("fast", "28x28 stem=cifar", (0,)),
    ]
    place = MADE | {"recipe": "28x28 stem=cifar, fast preset", "variant": "reference"}
    assert entry(tables[0], "top1_percent", "measured", **place).seeds == 1


def test_another_recipe_of_the_same_name_is_not_mixed_in(tmp_path: Path) -> None:
    study.a_cell(tmp_path, MOBILE, 0)
    study.a_cell(tmp_path, MOBILE, 1, overrides=["prune.fraction=0.5"])
    cells = read_cells(tmp_path)
    assert sorted(group.seeds for group in cells.groups) == [(0,), (1,)]
    made = {row[3].text for row in make_tables(cells)[0].rows if row[1].text == "MobileNetV2"}
    assert made == {"as published", "paper preset with changes", "not run"}
    study.a_cell(tmp_path, MOBILE, 2, overrides=["prune.fraction=0.6"])
    made = {row[3].text for row in make_tables(read_cells(tmp_path))[0].rows}
    assert len([label for label in made if "paper preset with changes, recipe " in label]) == 2


def test_cells_of_another_machine_are_merged_by_copying(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    study.a_cell(here, MOBILE, 0)
    shutil.copytree(study.a_cell(there, MOBILE, 1), here / "cells" / "copied")
    assert [group.seeds for group in read_cells(here).groups] == [(0, 1)]
    shutil.copytree(here / "cells" / "copied", here / "cells" / "copied-again")
    cells = read_cells(here)
    assert [group.seeds for group in cells.groups] == [(0, 1)]
    assert cells.unread == {"copied-again": "the same recipe and seed as copied"}


def test_cells_of_other_images_are_not_mixed_in(tmp_path: Path) -> None:
    study.a_cell(tmp_path, MOBILE, 0)
    study.a_cell(tmp_path, MOBILE, 1, images=300)
    cells = read_cells(tmp_path)
    assert [group.seeds for group in cells.groups] == [(0,)]
    assert cells.unread[f"{MOBILE}-1"] == f"measured on other test images than {MOBILE}-0"
    # Nor does a network that overfits borrow a reference that was measured on others.
    study.a_cell(tmp_path, MOBILE, 0, overfitting=True, images=300)
    table = make_tables(read_cells(tmp_path))[2]
    for variant, text in (("reference", "not run"), ("overfitted", "not run")):
        place = {"network": "MobileNetV2", "variant": variant}
        key = "top1_percent" if variant == "reference" else "top1_drop_points"
        assert entry(table, key, "measured", **place).text == text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "records.jsonl").unlink(), "cannot read records"),
        (lambda folder: (folder / "records.jsonl").write_text(""), "no records"),
        (lambda folder: (folder / "right.safetensors").unlink(), "cannot read decisions"),
        (lambda folder: (folder / "right.safetensors").write_bytes(b"x"), "cannot read decisions"),
        (lambda folder: (folder / "recipe.toml").write_text("="), "not a TOML file"),
        (lambda folder: (folder / "recipe.toml").write_text("seed = 9"), "recipe of another seed"),
        (lambda folder: decide(folder, np.ones(study.IMAGES, bool)), "decisions and records"),
        (lambda folder: decide(folder, np.ones(7, bool)), "different images"),
        (lambda folder: decide(folder, np.ones(study.IMAGES)), "not boolean"),
        (lambda folder: record_twice(folder), "recorded twice"),
    ],
)
def test_a_damaged_cell_does_not_count_and_is_named(tmp_path: Path, damage, said: str) -> None:
    study.a_cell(tmp_path, MOBILE, 0)
    damage(study.a_cell(tmp_path, MOBILE, 1))
    cells = read_cells(tmp_path)
    assert [group.seeds for group in cells.groups] == [(0,)]
    assert said in cells.unread[f"{MOBILE}-1"]
    assert str(tmp_path) not in cells.unread[f"{MOBILE}-1"]
    assert any(said in line for line in missing(cells, make_tables(cells)))


def decide(folder: Path, decided: np.ndarray) -> None:
    found = load_file(folder / "right.safetensors")
    save_file(found | {"pruned": decided}, folder / "right.safetensors")


def record_twice(folder: Path) -> None:
    records = read_records(folder / "records.jsonl")
    write_records(folder / "records.jsonl", [*records, records[0]])


# ---- formats


def test_numbers_are_the_same_in_every_format(tables: tuple[Table, ...]) -> None:
    for table in tables:
        lines = list(csv.DictReader(io.StringIO(table.to_csv())))
        markdown = [line for line in table.to_markdown().splitlines() if line.startswith("| ")][2:]
        latex = re.findall(r"^(?!&)(.* & .*) \\\\$", table.to_latex(), re.MULTILINE)[2:]
        assert len(lines) == len(markdown) == len(latex) == len(table.rows)
        assert html_rows(table.to_html()) == [spoken_in_html(table, row) for row in table.rows]
        for row, line, *texts in zip(table.rows, lines, markdown, latex, strict=True):
            for column, found in zip(table.columns, row, strict=True):
                if column.source == "label":
                    assert line[column.key] == found.text
                    continue
                stem = f"{column.source}_{column.key}"
                assert line[stem] == ("" if found.value is None else repr(found.value))
                if column.source == "measured":
                    assert line[f"{stem}_low"] == ("" if found.low is None else repr(found.low))
                    assert line[f"{stem}_high"] == ("" if found.high is None else repr(found.high))
                    assert line[f"{stem}_seeds"] == str(found.seeds or "")
            assert cells_of_markdown(texts[0]) == spoken(row)
            assert cells_of_latex(texts[1]) == spoken(row)


def html_rows(html: str) -> list[str]:
    """The text of each row, of the first table and then of the one with more quantities."""
    tables = [part.split("</table>")[0] for part in html.split("<tbody>", 1)[1].split("<thead>")]
    texts = [
        [
            re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", row))).strip()
            for row in re.findall(r"<tr>(<t.*?)</tr>", part)
            if 'scope="rowgroup"' not in row and '<th scope="col"' not in row
        ]
        for part in tables
    ]
    return [" ".join(parts) for parts in zip(*texts, strict=True)]


def spoken_in_html(table: Table, row: tuple[Entry, ...]) -> str:
    """Variant, how it was made, and each quantity: measured, then printed."""
    made = [entry.text for entry in row[3 : table.labels] if entry.text not in ("not run", "–")]
    head = " ".join([row[2].text, *made])
    spans = list(table._spans())
    parts = [head, *(quantity(table, row, columns) for _, columns in spans[:6])]
    if spans[6:]:
        parts += [head, *(quantity(table, row, columns) for _, columns in spans[6:])]
    return " ".join(parts)


def quantity(table: Table, row: tuple[Entry, ...], columns: list[Column]) -> str:
    entries = {column.source: row[table.columns.index(column)] for column in columns}
    measured = entries.get("measured", Entry("–"))
    printed = []
    for who in ("paper", "report"):
        if who in entries and entries[who].text != "–":
            marks = "".join(f" †{k}" for k in entries[who].marks)
            printed.append(f"{who} {entries[who].text}{marks}")
    text = " , ".join(printed) if "†" in "".join(printed[:1]) else ", ".join(printed)
    return " ".join(filter(None, [measured.text, measured.note, text]))


def spoken(row: tuple[Entry, ...]) -> list[str]:
    marks = ["".join(f"†{k}" for k in found.marks) for found in row]
    return [f"{f.text}{m} {f.note}".strip() for f, m in zip(row, marks, strict=True)]


def cells_of_markdown(line: str) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line.strip("|").split(" | ")]


def cells_of_latex(line: str) -> list[str]:
    line = re.sub(r"\$\^\{\\dagger (\d+)\}\$", r"†\1", line)
    line = line.replace("$-$", "−").replace(r"$\times$", "×").replace("--", "–")
    return [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line.split(" & ")]


HOSTILE = '"><script>alert(1)</script> | a*b* 50% $x$ {y} \\z ~^ _u_ & # `c`'


def test_hostile_text_stays_text_in_every_format() -> None:
    columns = (*(Column(k, HOSTILE, "label") for k in ("a", "b", "variant", "d")),
               Column("x", HOSTILE, "paper"))  # fmt: skip
    row = (*(Entry(HOSTILE) for _ in range(4)), Entry(HOSTILE, 1.0, marks=(1,)))
    table = Table("name", HOSTILE, columns, (row,), {1: HOSTILE}, (HOSTILE,))
    html, md, tex = table.to_html(), table.to_markdown(), table.to_latex()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 7
    assert not re.search(r"(?<!\\)<script", md)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in md.splitlines()[2:5])
    body = tex.split(r"\toprule")[1].split(r"\bottomrule")[0]
    assert not re.search(r"(?<!\\)[%#_]|(?<!\\)\$x|[\^~](?!\{)", body.replace("$^{", ""))
    assert list(csv.reader(io.StringIO(table.to_csv())))[1] == [*[HOSTILE] * 4, "1.0", HOSTILE]


# ---- figures


def drawn_points(figure: Sensitivity) -> dict[str, list[dict]]:
    """Curve to the points of its line, from the figure's specification."""
    return {
        f"{layer['data']['values'][0]['network']}{' dashed' * ('strokeDash' in layer['mark'])}":
            layer["data"]["values"]
        for layer in figure.chart.spec["layer"] if layer["mark"]["type"] == "line"
    }  # fmt: skip


def test_a_figure_has_one_curve_for_each_network(cells: Cells) -> None:
    one, two, three, four = draw_sensitivity(cells)
    assert [curve.network for curve in two.curves] == ["mobilenet_v2", "shufflenet_v2_x1_0"]
    assert two.curves == four.curves
    assert one.curves == three.curves == ()
    assert two.networks_without == ["AlexNet"]
    drawn = drawn_points(two)
    assert list(drawn) == ["MobileNetV2", "ShuffleNetV2"]
    assert len(drawn["MobileNetV2"]) == 4
    mean = rates_across_seeds(np.array([0.910, 0.912, 0.914]), 12_000)
    value, low, high = (numbers.fixed(100 * bound) for bound in mean)
    assert drawn["MobileNetV2"][0]["words"] == (
        f"MobileNetV2, 0 % pruned: {value} % [{low}, {high}], 3 seeds, 12,000 validation images"
    )
    assert drawn["ShuffleNetV2"][1]["words"] == (
        "ShuffleNetV2, 30 % pruned: 83.00 % [82.50, 83.50], 1 seed, 12,000 validation images"
    )


def test_points_are_those_of_their_curve(cells: Cells) -> None:
    figure = draw_sensitivity(cells)[1]
    points = drawn_points(figure)["MobileNetV2"]
    assert [(p["x"], p["y"], p["low"], p["high"]) for p in points] == [
        (100 * point.fraction, *point.percent) for point in figure.curves[0].points
    ]


def test_published_thresholds_stand_in_every_figure(cells: Cells) -> None:
    for drawn, words in zip(draw_sensitivity(cells), (("40", "30", "50"), ("70", "35", "90")) * 2,
                            strict=True):  # fmt: skip
        texts = [text.text for text in ElementTree.fromstring(drawn.chart.svg).iter(f"{SVG}text")]
        assert set(words) <= set(texts)


def test_measured_accuracies_are_next_to_both_publications(tables: tuple[Table, ...]) -> None:
    chart = draw_accuracies(tables[0])
    assert chart is not None
    rows = chart.spec["data"]["values"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    measured = [row for row in tables[0].rows if row[at(tables[0], "measured")].value is not None]
    assert len(names) == len(measured)
    for row in measured:
        for source in ("measured", "paper", "report"):
            value = row[at(tables[0], source)].value
            drawn = [r["x"] for r in rows if r["source"] == source]
            assert value is None or value in drawn


def at(table: Table, source: str) -> int:
    return [(c.key, c.source) for c in table.columns].index(("top1_percent", source))


def test_rows_of_one_name_are_told_apart_by_as_few_words_as_can_be() -> None:
    names = {
        "A, F, pruned, 64x64, quick": "A, F, pruned",
        "B, F, pruned, quick": "B, F, pruned, quick",
        "B, F, pruned, 28x28, accurate, recipe 1": "B, F, pruned, recipe 1",
        "B, F, pruned, 28x28, accurate, recipe 2": "B, F, pruned, recipe 2",
        "C, F, pruned, quick, 0 % noise, 9 images": "C, F, pruned, 0 % noise, 9 images",
        "C, F, pruned, quick, 40 % noise, 9 images": "C, F, pruned, 40 % noise, 9 images",
    }
    assert _labels([*names]) == names


def test_masks_not_in_force_are_a_demonstration_and_called_one(tmp_path: Path) -> None:
    study.a_cell(tmp_path, MOBILE, 0, demonstration=True)
    cells = read_cells(tmp_path)
    scan, shown = draw_sensitivity(cells)[1].curves
    assert (scan.demonstration, shown.demonstration) == (False, True)
    assert scan.points == scan_points(cells.groups[0])
    assert {point.percent.value for point in shown.points} == {91.0}
    html = write_reproduction(tmp_path).read_text(encoding="utf-8")
    assert "Dashed curves are a demonstration, not a result." in html
    assert "MobileNetV2, demonstration: masks not applied, 90 % pruned: 91.00 %" in html
    figure = (tmp_path / "reproduction/figures/figure-2.svg").read_text(encoding="utf-8")
    assert "stroke-dasharray" in figure
    assert figure.count(">masks not applied<") == 1  # however many curves are dashed


# ---- the page


class Page(HTMLParser):
    """Holds that what is opened is closed, and collects what is loaded."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            assert not key.startswith("on")
            self.ids += [value or ""] if key == "id" else []
            self.loads += [value or ""] if key in ("src", "href", "srcset", "action") else []
        self.open += [] if tag in ("meta", "link", "wbr") else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_sound_and_loads_nothing(written: Path) -> None:
    html = (written / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    inside = {load[1:] for load in page.loads if load.startswith("#")}
    assert inside <= set(page.ids)
    beside = {load for load in page.loads if not load.startswith(("#", "data:,"))}
    assert beside
    assert all((written / name).is_file() for name in beside)
    without_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    without_names = without_scripts.replace("http://www.w3.org/", "")
    assert not re.search(r"https?://|@import|url\((?!#)", without_names)


def test_every_file_is_written_and_writing_again_changes_none(out: Path, written: Path) -> None:
    names = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    tables = {f"tables/{name}.{end}" for name in ("pruning", "quantization", "overfitting")
              for end in ("md", "csv", "tex", "html")}  # fmt: skip
    figures = {f"figures/figure-{number}.svg" for number in range(1, 5)}
    figures |= {f"figures/accuracies-{table}.svg"
                for table in ("pruning", "quantization", "overfitting")}  # fmt: skip
    assert names == tables | figures | {"report.html", "report.md"}
    before = {name: (written / name).read_bytes() for name in names}
    write_reproduction(out, ["planned-cell"])
    assert {name: (written / name).read_bytes() for name in names} == before


def test_both_pages_say_what_is_missing_and_where_it_was_made(written: Path) -> None:
    for end in ("html", "md"):
        text = unescape((written / f"report.{end}").read_text(encoding="utf-8"))
        text = text.replace("\\", "")
        for words in (
            "cell planned-cell: not made",
            "pruning: AlexNet on FashionMNIST: reference; pruned",
            "overfitting: ShuffleNetV2 on FashionMNIST: reference; overfitted; overfitted, pruned",
            "scan: AlexNet on CIFAR-10",
            study.CPU,
            OTHER,
            "python 3.13.1, torch 2.15.0",
            "abcdef012345",
            "Report, Tables 2 and 4, ShuffleNetV2 on CIFAR-10",
            f"{MOBILE}-2",
        ):
            assert words in text, (end, words)
        assert "scan: MobileNetV2 on FashionMNIST" not in text


def test_outcome_counts_each_accuracy_once(tables: tuple[Table, ...], cells: Cells) -> None:
    claim, proof = outcome(tables)
    assert claim.startswith("Of the paper's 24 accuracies, measured here: ")
    counts = dict(reversed(part.split(" ", 1)) for part in claim.split("here: ")[1].split(", "))
    # MobileNetV2: reference, pruned, quantized and two of overfitting; ShuffleNetV2: three.
    assert int(counts.pop("not run")) == 24 - 8
    assert sum(map(int, counts.values())) == 8
    assert any(said.startswith("2 of the paper's 24 were measured with another") for said in proof)
    assert proof[0].startswith("Of the report's 24 accuracies: ")


def test_higher_and_lower_need_the_whole_interval() -> None:
    labels = [Column(key, key, "label") for key in ("dataset", "network", "variant", "recipe")]
    columns = [
        *labels,
        *(Column("top1_percent", "Top-1", w) for w in ("paper", "report", "measured")),
    ]

    def claim(low: float, high: float) -> str:
        measured = Entry("", (low + high) / 2, low, high, 3)
        names = [Entry(text) for text in ("d", "n", "v", "as published")]
        row = (*names, Entry("90", 90.0), Entry("90", 90.0), measured)
        return outcome([Table("t", "t", tuple(columns), (row,), {}, ())]).claim

    assert claim(90.1, 91).endswith("here: 1 higher")
    assert claim(89, 89.9).endswith("here: 1 lower")
    assert claim(89, 91).endswith("here: 1 level")


def test_without_cells_the_page_says_that_nothing_is_run(tmp_path: Path) -> None:
    text = write_reproduction(tmp_path).read_text(encoding="utf-8")
    assert Page(text).open == []
    assert "None of the 24 accuracies in the paper is measured yet" in text
    assert "No cell is finished." in text
    tables = make_tables(read_cells(tmp_path))
    assert all(row[3].text == "not run" for table in tables for row in table.rows)
    assert [len(table.rows) for table in tables] == [12, 12, 9]


def test_a_cell_that_no_publication_has_is_named(tmp_path: Path) -> None:
    study.a_cell(tmp_path, "quickstart", 0)
    cells = read_cells(tmp_path)
    assert (
        "cell quickstart-0: no publication has shufflenet_v2_x1_0 on fashionmnist-mini"
        in missing(cells, make_tables(cells))
    )


def test_hostile_cells_stay_text(tmp_path: Path) -> None:
    study.a_cell(tmp_path, MOBILE, 0, processor=HOSTILE, commit=HOSTILE)
    study.a_cell(tmp_path, MOBILE, 1, name="a<b>&|c")
    html = write_reproduction(tmp_path).read_text(encoding="utf-8")
    assert Page(html).open == []
    assert html.count("<script>") == 2
    assert "alert(1)</script>" not in html
    assert "a<b>" not in html
    text = (tmp_path / "reproduction/report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<script", text)


def test_needs_no_torch(out: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from secateur.study.page import write_reproduction\n"
        "write_reproduction(Path(sys.argv[1]))\n"
        "assert not {'torch', 'onnx', 'secateur.models.build'} & set(sys.modules)"
    )
    shutil.copytree(out / "cells", tmp_path / "cells")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_overflows_overlaps_or_violates_axe(written: Path, width: int, scheme: str) -> None:
    page = open_page((written / "report.html").as_uri(), width=width, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert layout_faults(page) == []
    assert accessibility_faults(page) == []
    assert page.problems == []
    if width == 1280:
        wide = "(e) => e.scrollWidth > e.clientWidth"
        tables = page.locator(".scroll:has(.measured)")
        assert not any(table.evaluate(wide) for table in tables.all())


@needs_browser
def test_pointing_at_a_curve_reads_it(written: Path) -> None:
    page = open_page((written / "report.html").as_uri())
    figure = page.locator("[data-chart=figure-2]")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("[data-chart=figure-2][data-live=yes]")
    figure.locator(".mark-symbol path[fill='var(--mark)']").nth(1).hover()
    assert "% pruned" in figure.locator(".readout").inner_text()
