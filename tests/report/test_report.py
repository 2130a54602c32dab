"""The report says what the records say, computes what it compares, and runs nothing it is told."""

from __future__ import annotations

import functools
import io
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from secateur.errors import RecipeError, StoreError
from secateur.records import Record, write_records
from secateur.report import numbers, render_report, summary_table, write_report
from secateur.report.charts import _classes
from secateur.report.contents import (
    Calibration,
    Estimate,
    ImageChanges,
    Report,
    Step,
    Verdict,
    read_report,
)
from secateur.report.findings import Findings
from secateur.report.rows import _times
from secateur.report.summary import NAMES, headline, missing

CHARTS = ("trade-off-size", "trade-off-latency", "ladder", "scan", "drop", "accuracy", "loss")
GOLDEN = Path(__file__).parents[1] / "golden" / "report.md"
LAYERS = ("conv1", "stage2.0.branch2", "fc")
RECIPE = """\
name = "example"
description = "A run made up for this test"
seed = 7

[network]
name = "shufflenet_v2_x1_0"
"""
COMMON = {
    "network": "shufflenet_v2_x1_0",
    "dataset": "fashionmnist",
    "seed": 7,
    "geometry": "28x28 stem=stride1",
    "preset": "quick",
    "recipe_id": "0123456789ab",
    "threads": 2,
    "processor": "Example CPU, 2 cores, avx2",
    "versions": {"python": "3.13.1", "torch": "2.15.0"},
    "commit": "abcdef012345",
}
BENCH: dict[str, dict[str, tuple[float, float | None, float | None, int]]] = {
    "reference": {
        "top1_percent": (92.31, 91.77, 92.82, 10_000),
        "parameters": (1_263_854, None, None, 1),
        "nonzero_parameters": (1_263_700, None, None, 1),
        "macs": (11_234_000, None, None, 1),
        "size_bytes": (5_120_000, None, None, 1),
        "latency_ms": (1.0, 0.96, 1.11, 200),
    },
    "pruned": {
        "top1_percent": (92.25, 91.71, 92.76, 10_000),
        "top1_drop_points": (0.06, -0.15, 0.27, 10_000),
        "parameters": (700_000, None, None, 1),
        "nonzero_parameters": (650_000, None, None, 1),
        "macs": (6_000_000, None, None, 1),
        "size_bytes": (2_900_000, None, None, 1),
        "latency_ms": (0.7, 0.66, 0.81, 200),
    },
    "quantized": {
        "top1_percent": (92.19, 91.65, 92.70, 10_000),
        "top1_drop_points": (0.12, -0.11, 0.35, 10_000),
        "parameters": (700_000, None, None, 1),
        "nonzero_parameters": (640_000, None, None, 1),
        "macs": (6_000_000, None, None, 1),
        "size_bytes": (1_280_000, None, None, 1),
        "latency_ms": (0.4, 0.38, 0.46, 200),
    },
}
BENCH["packed"] = BENCH["quantized"] | {"size_bytes": (320_000, None, None, 1)}


def a_record(variant: str, metric: str, value: float, n: int = 1, **more: object) -> Record:
    fields = COMMON | {"runtime": "torch 2.15.0"} | more
    return Record(variant=variant, metric=metric, value=value, n=n, **fields)  # type: ignore[arg-type]


def seconds() -> Iterator[Record]:
    for stage, spent in (("data", 0.4), ("train", 481.0), ("scan", 59.5), ("prune-1", 3725.0)):
        yield a_record("reference", "seconds", spent, at={"stage": stage})
    yield a_record("reference", "seconds", 31.0, at={"stage": "bench"})


def training() -> Iterator[Record]:
    for stage, epochs in (("train", 4), ("prune-1", 2)):
        for epoch in range(1, epochs + 1):
            at = {"stage": stage, "epoch": epoch}
            top1, n = 92 - 20 / epoch**2, 12_000 if epoch == epochs else 2000
            yield a_record("reference", "train_loss", 1.5 / epoch, at=at)
            yield a_record(
                "reference",
                "validation_top1_percent",
                top1,
                n,
                at=at,
                low=top1 - 1.2,
                high=top1 + 1.1,
            )


def a_scan(layer: str, fractions: list[float], steep: float, n: int) -> Iterator[Record]:
    for fraction in fractions:
        drop = 82 / (1 + math.exp(-steep * (fraction - 0.6))) - 82 / (1 + math.exp(steep * 0.6))
        at = {"layer": layer, "fraction": fraction, "effective_sparsity": 0.9 * fraction}
        wide = 0.2 + 0.05 * drop
        bounds = {"low": 91.5 - drop - 0.5, "high": 91.5 - drop + 0.5}
        yield a_record("reference", "scan_top1_percent", 91.5 - drop, n, at=at, **bounds)
        bounds = {"low": drop - wide, "high": drop + wide}
        yield a_record("reference", "scan_drop_points", drop, n, at=at, **bounds)


def scan() -> Iterator[Record]:
    yield from a_scan("network", [0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9], 14, 12_000)
    for steep, layer in enumerate(LAYERS, start=4):
        yield from a_scan(layer, [0.1, 0.5, 0.9], 2 * steep, 2000)
    yield a_record("reference", "threshold_fraction", 0.2, at={"tolerance_points": 1.0})


def bench() -> Iterator[Record]:
    runtime = "onnxruntime 1.32.0"
    for variant, measured in BENCH.items():
        for metric, (value, low, high, n) in measured.items():
            at: dict[str, float | str] = {}
            if metric == "top1_drop_points":
                at["mcnemar_p"] = 0.3412
            if variant == "packed" and metric != "size_bytes":
                at["decoded_to"] = "quantized"
            yield a_record(variant, metric, value, n, low=low, high=high, at=at, runtime=runtime)
    margins = {"largest_margin": 0.3125, "typical_margin": 4.25}
    yield a_record("quantized", "parity_percent", 99.91, 10_000, at=margins, runtime=runtime)


def all_records() -> list[Record]:
    return [*seconds(), *training(), *scan(), *bench()]


def a_run(folder: Path, records: list[Record], recipe: str = RECIPE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    write_records(folder / "records.jsonl", records)
    return folder


def report_of(folder: Path, records: list[Record], recipe: str = RECIPE) -> tuple[str, str]:
    run = a_run(folder, records, recipe)
    write_report(run)
    return tuple((run / f"report.{end}").read_text(encoding="utf-8") for end in ("html", "md"))  # type: ignore[return-value]


def changed(variant: str, metric: str, **update: object) -> list[Record]:
    records = all_records()
    found = [i for i, r in enumerate(records) if (r.variant, r.metric) == (variant, metric)]
    records[found[0]] = records[found[0]].model_copy(update=update)
    return records


def said(records: list[Record]) -> str:
    claim, interval, proof = headline(Findings.of(records))
    return f"{claim} ({interval}) {proof}"


class Page(HTMLParser):
    """Collects what a page loads, and holds that what is opened is closed."""

    VOID = ("meta", "link", "wbr", "img", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            assert not key.startswith("on")
            if key == "id":
                self.ids.append(value or "")
            if key in ("src", "href", "srcset", "action", "data") and value:
                self.loads.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closed out of order"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


@functools.cache
def text_of(html: str) -> str:
    return Page(html).text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("report") / "run"
    html, md = report_of(folder, all_records())
    return folder, html, md


def test_markdown_is_the_golden_file(whole: tuple[Path, str, str]) -> None:
    # After a change that is meant: SECATEUR_GOLDEN=write pytest tests/report/test_report.py
    if os.environ.get("SECATEUR_GOLDEN") == "write":
        GOLDEN.write_text(whole[2], encoding="utf-8", newline="\n")
    assert whole[2] == GOLDEN.read_text(encoding="utf-8")


def test_markdown_names_the_figures_that_are_there(whole: tuple[Path, str, str]) -> None:
    folder, _, md = whole
    named = re.findall(r"\((figures/.*?\.svg)\)", md)
    assert len(named) == len(CHARTS)
    for name in named:
        root = ElementTree.fromstring((folder / name).read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        text = ElementTree.tostring(root, "unicode")
        assert "var(" not in text
        assert "currentColor" not in text


def test_page_is_sound_and_loads_nothing(whole: tuple[Path, str, str]) -> None:
    html = whole[1]
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == len(CHARTS)
    own = ("#", "data:,", "data:image/png;base64,", "net.sec")
    assert [load for load in page.loads if not load.startswith(own)] == []
    without_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    without_names = without_scripts.replace("http://www.w3.org/", "")
    assert not re.search(r"https?://|@import|url\((?!#)", without_names)


def test_every_reference_inside_a_figure_is_there(whole: tuple[Path, str, str]) -> None:
    page = Page(whole[1])
    without_scripts = re.sub(r"<script.*?</script>", "", whole[1], flags=re.DOTALL)
    wanted = set(re.findall(r"url\(#([^)]+)\)", without_scripts))
    wanted |= {load[1:] for load in page.loads if load.startswith("#")}
    assert wanted <= set(page.ids)


def test_figures_take_the_colors_of_the_page(whole: tuple[Path, str, str]) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", whole[1], re.DOTALL))
    assert "currentColor" in drawn
    assert "var(--curve)" in drawn
    fixed_colors = re.findall(r"#[0-9a-f]{6}\b", drawn)
    assert fixed_colors == []


@pytest.mark.parametrize(
    "text",
    [
        *("92.31", "91.77 to 92.82", "+0.12", "−0.11 to +0.35", "1,263,854", "640,000"),
        *(
            "11.2 M",
            "5.12 MB",
            "1.28 MB",
            "4.00×",
            "320 kB",
            "0.400",
            "0.380 to 0.460",
            "2.50×",
            "0.34",
        ),
        *("20 %", "stage2.0.branch2", "1 h 02 min", "1 h 12 min", "prune-1", "0123456789ab"),
        *("onnxruntime 1.32.0", "Example CPU", "abcdef012345", "torch 2.15.0", "12,000"),
        "28x28 stem=stride1",
        "A run made up for this test",
    ],
)
def test_every_value_is_on_both_pages(whole: tuple[Path, str, str], text: str) -> None:
    assert text in text_of(whole[1])
    assert text in whole[2]


def test_writing_again_changes_no_byte(whole: tuple[Path, str, str], tmp_path: Path) -> None:
    report_of(tmp_path / "again", all_records())
    for path in sorted(p for p in whole[0].rglob("*") if p.is_file()):
        again = tmp_path / "again" / path.relative_to(whole[0])
        assert again.read_bytes() == path.read_bytes(), path.name
    assert not list(tmp_path.rglob("*.tmp"))


# ---- what is compared is computed


def test_size_and_speed_are_computed() -> None:
    assert said(all_records()).startswith("16× smaller and 2.5× faster, 0.12 points less")
    assert said(changed("packed", "size_bytes", value=512_000)).startswith("10× smaller")
    assert "5.0× faster" in said(changed("reference", "latency_ms", value=2.0))


def test_a_recorded_rate_is_not_believed() -> None:
    lie = a_record("quantized", "compression_rate", 99.0)
    assert said([*all_records(), lie]) == said(all_records())


def test_worse_is_called_worse() -> None:
    assert said(changed("packed", "size_bytes", value=10_240_000)).startswith(
        "2.0× larger but 2.5× faster"
    )
    assert "16× smaller but 2.0× slower" in said(changed("packed", "latency_ms", value=2.0))
    assert "about as fast" in said(changed("packed", "latency_ms", value=0.98))
    assert said(changed("packed", "size_bytes", value=5_120_000)).startswith("No smaller and")


def test_the_interval_decides_what_is_said_of_accuracy() -> None:
    def with_drop(value: float, low: float, high: float) -> str:
        return said(changed("packed", "top1_drop_points", value=value, low=low, high=high))

    chance = "larger than chance explains"
    assert "0.12 points less accurate (95 % interval −0.11 to +0.35)" in said(all_records())
    assert "includes zero: no difference is shown" in said(all_records())
    assert chance not in said(all_records())
    worse, better = with_drop(0.52, 0.3, 0.74), with_drop(-0.52, -0.74, -0.3)
    assert "0.52 points less accurate (95 % interval +0.30 to +0.74)" in worse
    assert "0.52 points more accurate (95 % interval +0.30 to +0.74)" in better
    assert f"the loss is {chance}" in worse
    assert f"the gain is {chance}" in better
    assert "zero" not in worse + better
    assert "equally accurate (95 % interval −0.20 to +0.21)" in with_drop(0.004, -0.2, 0.21)
    assert "0.10 points more accurate (95 % interval −0.20 to +0.40)" in with_drop(-0.1, -0.4, 0.2)


def test_the_last_variant_there_is_in_the_headline() -> None:
    without = [r for r in all_records() if r.variant not in ("quantized", "packed")]
    assert said(without).startswith("1.8× smaller and 1.4× faster")


@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9))
def test_gain_is_reference_over_variant(reference: float, pruned: float) -> None:
    values = {"reference": reference, "pruned": pruned}
    found = Findings.of([a_record(v, "latency_ms", value) for v, value in values.items()])
    assert found.gain("pruned", "latency_ms") == pytest.approx(reference / pruned)
    assert found.gain("pruned", "size_bytes") is None


@pytest.mark.parametrize("width", [76, 120])
def test_terminal_table_fits_and_has_the_numbers(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(summary_table(all_records()))
    text = capture.get()
    for value in (
        "92.31",
        "+0.12",
        "1,263,854",
        "11.2 M",
        "1.28 MB",
        "4.00×",
        "320 kB",
        "0.400",
        "2.50×",
    ):
        assert value in text
    assert "…" not in text
    first = next(line for line in text.splitlines() if "reference" in line)
    assert ("quantized" in first) == (width == 76)


def test_terminal_table_before_anything_is_measured() -> None:
    console = Console(width=76, file=io.StringIO())
    with console.capture() as capture:
        console.print(summary_table(list(seconds())))
    assert capture.get() == "nothing is measured on the test images yet\n"


# ---- what is not there


@pytest.mark.parametrize(
    ("part", "absent", "present"),
    [
        (seconds, ["training curves", "every measurement of reference"], []),
        (training, ["network-wide scan", "time per stage"], ["training curves"]),
        (scan, ["training curves"], ["network-wide scan", "per-layer scan", "threshold"]),
        (bench, ["network-wide scan"], ["every measurement of pruned"]),
    ],
)
def test_one_part_alone_is_a_report(
    tmp_path: Path, part: Callable[[], Iterator[Record]], absent: list[str], present: list[str]
) -> None:
    html, md = report_of(tmp_path / "run", list(part()))
    assert Page(html).open == []
    for text in (html, md):
        assert "This run is not complete" in text
        assert all(name in text for name in absent)
    assert not set(present) & set(missing(Findings.of(list(part()))))


@pytest.mark.parametrize("metric", sorted({r.metric for r in [*seconds(), *bench()]}))
def test_any_number_may_be_missing(tmp_path: Path, metric: str) -> None:
    records = [r for r in [*seconds(), *bench()] if r.metric != metric]
    html, md = report_of(tmp_path / "run", records)
    assert Page(html).open == []
    name = "time per stage" if metric == "seconds" else NAMES[metric]
    assert name in md.split("## Results")[0].split("Missing:")[1]


@pytest.mark.parametrize("metric", sorted({r.metric for r in [*training(), *scan()]}))
def test_any_part_of_a_curve_may_be_missing(tmp_path: Path, metric: str) -> None:
    html, md = report_of(tmp_path / "run", [r for r in all_records() if r.metric != metric])
    assert Page(html).open == []
    lost = {"train_loss": "loss", "validation_top1_percent": "accuracy"} | {
        "scan_top1_percent": "scan",
        "scan_drop_points": "drop",
    }
    named = re.findall(r"figures/([\w-]+)\.svg", md)
    curves = {"scan", "drop", "accuracy", "loss"}
    assert set(named) & curves == curves - {lost.get(metric)}


def test_a_whole_run_misses_nothing(whole: tuple[Path, str, str]) -> None:
    assert missing(Findings.of(all_records())) == []
    assert "not complete" not in whole[1] + whole[2]


def test_names_the_number_that_is_missing() -> None:
    records = [r for r in all_records() if (r.variant, r.metric) != ("pruned", "macs")]
    assert missing(Findings.of(records)) == ["MACs of pruned"]


def test_training_alone_says_how_far_it_is() -> None:
    text = said([*seconds(), *training()])
    assert text.startswith("Not measured yet; so far 87.00 % on 12,000 validation images")


def test_threshold_by_hand_is_called_that(tmp_path: Path) -> None:
    html, md = report_of(
        tmp_path / "run", changed("reference", "threshold_fraction", at={"by_hand": "yes"})
    )
    assert "was set by hand" in html
    assert "was set by hand" in md
    assert "tolerance of" not in html + md


def test_a_threshold_of_zero_says_that_nothing_can_go(tmp_path: Path) -> None:
    for text in report_of(tmp_path / "run", changed("reference", "threshold_fraction", value=0.0)):
        assert "fraction scanned does the upper end" in text
        assert "Up to" not in text


# ---- what is refused


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"records\.jsonl"):
        write_report(tmp_path)
    run = a_run(tmp_path / "run", all_records(), "name = ")
    with pytest.raises(RecipeError, match=r"recipe\.toml"):
        write_report(run)
    with pytest.raises(RecipeError, match="no name"):
        write_report(a_run(run, all_records(), "seed = 1"))
    assert not (run / "report.html").exists()


def test_records_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(StoreError, match="no records"):
        Findings.of([])
    one, *_ = bench()
    with pytest.raises(StoreError, match="recorded twice"):
        Findings.of([one, one])
    with pytest.raises(StoreError, match="more than one recipe"):
        Findings.of([one, one.model_copy(update={"recipe_id": "another"})])
    with pytest.raises(StoreError, match="at no fraction"):
        Findings.of([one.model_copy(update={"metric": "scan_drop_points"})])


HOSTILE = '"><script>alert(1)</script> | a*b* $x$ `c` [l](u) </pre>\n# h'


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    said = HOSTILE.replace('"', '\\"').replace("\n", "\\n")
    recipe = f'name = "{said}"\ndescription = "{said}"\nfence = """\n```\n# out\n"""\n'
    records = [
        record.model_copy(
            update={
                "processor": HOSTILE,
                "dataset": HOSTILE,
                "commit": HOSTILE,
                "at": record.at | ({"layer": HOSTILE} if "layer" in record.at else {})
                if record.at.get("layer") != "network"
                else record.at,
            }
        )
        for record in all_records()
        if record.at.get("layer") not in LAYERS[1:]
    ]
    stages = {"train": HOSTILE, "prune-1": r"$\q$<b>"}  # the second is short enough to be drawn
    records = [
        r.model_copy(update={"at": r.at | {"stage": stages.get(str(r.at["stage"]), r.at["stage"])}})
        if "stage" in r.at
        else r
        for r in records
    ]
    html, md = report_of(tmp_path / "run", records, recipe)
    page = Page(html)
    assert page.open == []
    assert not {"b", "a"} & set(page.tags)
    assert page.tags.count("script") == html.count('<script type="application/json">') + 2
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert r"$\q$&lt;b&gt;</text>" in html
    specifications = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert not any("<" in specification for specification in specifications)
    prose = re.sub(r"^````toml.*?^````$", "", md, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<script", prose)
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    assert "\n# out" not in prose


def test_a_report_needs_no_more_than_a_title_and_a_verdict(tmp_path: Path) -> None:
    latency = Estimate(value=0.4, low=0.3, high=0.5, n=200)
    steps = tuple(Step(name=name, latency=latency) for name in ("before", "after"))
    for report in (
        Report(title="bare", verdict=Verdict(sentence="Nothing is measured yet")),
        Report(title="bare", verdict=Verdict(sentence="0.4 ms"), ladder=steps),
    ):
        render_report(report, tmp_path)
        assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).open == []
        assert read_report(tmp_path / "report.json") == report


# ---- numbers as words


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (numbers.fixed, -0.004, "0.00"),
        (numbers.fixed, -1234.5, "−1,234.50"),
        (numbers.signed, 0.004, "0.00"),
        (numbers.signed, 0.1, "+0.10"),
        (numbers.signed, -0.1, "−0.10"),
        (numbers.significant, 9.996, "10.0"),
        (numbers.significant, 0.05234, "0.0523"),
        (numbers.significant, 1234.5, "1,230"),
        (numbers.short_count, 999, "999"),
        (numbers.short_count, 999_700, "1.00 M"),
        (numbers.size, 512, "512 B"),
        (numbers.size, 5_100_000, "5.10 MB"),
        (numbers.percent, 0.125, "12.5 %"),
        (numbers.percent, 0.35, "35 %"),
        (numbers.duration, 0.44, "0.4 s"),
        (numbers.duration, 59.7, "1 min 00 s"),
        (numbers.duration, 3725, "1 h 02 min"),
        (numbers.probability, 1e-9, "< 0.001"),
        (numbers.probability, 0.3412, "= 0.34"),
    ],
)
def test_form_of_numbers(form: Callable[[float], str], value: float, text: str) -> None:
    assert form(value) == text


def test_needs_no_torch(whole: tuple[Path, str, str], tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", list(bench()))
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        "from pathlib import Path; from secateur.report import write_report, summary_table\n"
        "write_report(Path(sys.argv[1]))\n"
        "assert 'secateur.models.build' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()


@pytest.mark.parametrize(
    ("ratio", "change"),
    [
        (2.0, ("2.0× faster", True)),
        (1.003, ("as fast", False)),
        (0.98, ("as fast", False)),
        (0.5, ("2.0× slower", False)),
    ],
)
def test_a_change_within_the_margin_is_no_gain(ratio: float, change: tuple[str, bool]) -> None:
    assert _times(ratio, "faster", "slower", "as fast", 0.05) == change


@pytest.mark.parametrize(
    ("right", "words"),
    [(89, "b loses most, 1 point."), (85, "b loses most, 5 points."), (90, "no class loses.")],
)
def test_the_chart_of_classes_tells_which_one_loses_most(right: int, words: str) -> None:
    flat = Calibration(ece=0.0, bins=())
    images = ImageChanges(
        classes=("a", "b"),
        confusion_before=((90, 10), (10, 90)), confusion_after=((95, 5), (100 - right, right)),
        calibration_before=flat, calibration_after=flat, flipped=1, lost=1, won=0,
    )  # fmt: skip
    chart = _classes(images)
    assert chart is not None
    assert chart.alt.endswith(words)
