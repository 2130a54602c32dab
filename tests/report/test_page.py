"""The page of a run in a real browser: layout, accessibility, and what one can point at."""

import numpy as np
import pytest

from helpers.browser import accessibility_faults, layout_faults, needs_browser, open_page
from secateur.report import render_report
from secateur.report.contents import (
    Candidate,
    Curve,
    Download,
    Estimate,
    Layer,
    Point,
    Provenance,
    Report,
    Sensitivity,
    Series,
    Step,
    Variant,
    Verdict,
)
from secateur.report.image_changes import image_changes

IMAGES = 10_000
CLASSES = [f"class {number}" for number in range(10)]
pytestmark = needs_browser


def estimate(value, margin, n=IMAGES):
    return Estimate(value=value, low=value - margin, high=value + margin, n=n)


def candidates():
    for number in range(30):
        share = 1 - number / 32
        yield Candidate(
            name=f"macs {share:.2f}, int8",
            top1=estimate(92 - 6 * (1 - share) ** 2, 0.6, 5000),
            size_bytes=4e6 * share**2,
            latency=estimate(2 * share, 0.1 * share, 200),
            chosen=number == 14,
            settings={"kept": f"{share:.2f}", "epochs": "4"},
        )


def variants():
    generator = np.random.default_rng(0)
    for name, top1, size, latency in (
        ("reference", 92.1, 5.12e6, 1.0),
        ("compressed", 91.9, 4.1e5, 0.4),
        ("packed", 91.9, 1.1e5, 0.4),
    ):
        yield Variant(
            name=name,
            top1=estimate(top1, 0.5),
            drop=None if name == "reference" else estimate(92.1 - top1, 0.3),
            parameters=1_263_854,
            nonzero_parameters=1_200_000,
            macs=1.1e7,
            size_bytes=size,
            latency=estimate(latency, 0.1, 200),
            samples_ms=tuple(generator.gamma(40, latency / 40, 200).round(4).tolist()),
            memory_mb=size / 1e5,
            decodes_to="compressed" if name == "packed" else "",
        )


def layers():
    for stage in (1, 2, 3):
        for block in (1, 2, 3, 4):
            for kind in ("1×1 (1 of 2)", "depthwise 3×3", "1×1 (2 of 2)"):
                own = f"stage {stage}, block {block}"
                yield Layer(
                    name=f"conv_{stage}{block}",
                    label=f"{own}, {kind}",
                    block=own,
                    operator="Conv",
                    output=(58 * stage, 14, 14),
                    channels_before=58 * stage,
                    channels_after=58 * stage // 2,
                    bits=8,
                    microseconds_before=12.5,
                    microseconds_after=4.5 + stage,
                )


def changes():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, IMAGES)
    before = generator.normal(0, 1, (IMAGES, 10)).astype(np.float32)
    before[np.arange(IMAGES), labels] += 2.5
    after = before + generator.normal(0, 0.2, before.shape).astype(np.float32)
    pixels = generator.integers(0, 256, (IMAGES, 1, 28, 28), np.uint8)
    return image_changes(labels, before, after, CLASSES, pixels)


def curve(name, group, series):
    points = tuple(Point(x=5.0 * x, y=estimate(90 - x * x / 5, 1)) for x in range(20))
    every = tuple(Series(name=label, points=points) for label in series)
    mark = (35.0, "threshold 35 %") if group == "scan" else None
    return Curve(name=name, title=name, x_title="%", series=every, group=group, mark_x=mark)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    drops = tuple((f"features.{i}.conv", (estimate(0.1 * i, 0.1), None)) for i in range(20))
    report = Report(
        title="An example that was made up for this test",
        description="One line.",
        facts=("mobilenet_v2 on photographs", "28x28", "seed 0"),
        verdict=Verdict(
            status="met",
            sentence="12× smaller and 2.5× faster, 0.20 points less accurate (95 % interval "
            "−0.10 to +0.50)",
            proof="Compared on the same 10,000 test images.",
            goal="at most 0.5 points less accurate",
        ),
        variants=tuple(variants()),
        candidates=tuple(candidates()),
        downloads=(Download(href="net.sec", size_bytes=110_000, note="packed network"),),
        usage=("import secateur", 'network = secateur.load("net.sec")', "print(network)"),
        layers=tuple(layers()),
        curves=(curve("scan", "scan", [""]), curve("accuracy", "training", ["train", "prune-1"])),
        sensitivity=Sensitivity(fractions=(0.1, 0.5), layers=drops),
        images=changes(),
        ladder=tuple(
            Step(name=name, latency=estimate(value, 0.1, 200))
            for name, value in (("eager PyTorch", 6.1), ("ONNX Runtime", 1.0), ("int8", 0.4))
        ),
        provenance=Provenance(
            recipe='name = "example"',
            facts={"Seed": "0", "Processor": "Example CPU, 2 cores, avx2"},
            stages=(("data", 0.4), ("macs 0.50, local l2, int8 at price auto", 481.0)),
        ),
    )
    render_report(report, folder)
    return folder


def opened(folder, **options):
    page = open_page((folder / "report.html").as_uri(), **options)
    page.wait_for_load_state()
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_overflows_overlaps_or_violates_axe(folder, width, scheme):
    page = opened(folder, width=width, scheme=scheme)
    page.wait_for_selector("figure[data-live=yes]")
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert layout_faults(page) == []
    assert accessibility_faults(page) == []
    assert page.problems == []
    assert all(url.startswith(("file:", "data:")) for url in page.requested)


def test_each_file_has_its_latency_and_memory(folder):
    page = (folder / "report.html").read_text()
    costs = page[page.index('<table class="costs">') :].partition("</table>")[0]
    assert [name in costs for name in ("reference", "compressed", "packed")] == [True, True, False]
    assert "51.2 MB" in costs
    assert "| reference | 1.00 (0.900 to 1.100) | 51.2 MB |" in (folder / "report.md").read_text()


def test_a_page_of_30_candidates_and_10000_images_is_small_and_opens_fast(folder):
    assert (folder / "report.html").stat().st_size < 3e6
    durations = []
    for _ in range(3):
        page = opened(folder)
        durations.append(
            page.evaluate("() => performance.getEntriesByType('navigation')[0].duration")
        )
    assert min(durations) < 1000


def test_pointing_at_a_candidate_reads_it(folder):
    page = opened(folder)
    page.wait_for_selector("[data-chart=trade-off-size][data-live=yes]")
    points = page.locator("[data-chart=trade-off-size] .mark-symbol path")
    assert points.count() == 30
    points.nth(0).hover()
    page.wait_for_selector("tr.picked", state="attached")
    assert page.locator(".trade-off .readout").inner_text().startswith("macs 1.00, int8: 92.00 %")


def test_the_keyboard_chooses_a_candidate_and_marks_it_in_the_curve(folder):
    page = opened(folder)
    page.wait_for_selector("[data-chart=trade-off-size][data-live=yes]")
    page.locator(".candidates summary").focus()
    page.keyboard.press("Enter")  # no pointer, which would choose what scrolls below it
    page.locator(".candidates button").first.focus()
    page.keyboard.press("Tab")
    assert page.locator(".trade-off .readout").inner_text().startswith("macs 0.97, int8")
    picked = page.locator("[data-chart=trade-off-size] .mark-symbol path[fill='var(--mark)']")
    assert picked.count() == 1


def test_a_resting_pointer_chooses_nothing_while_the_page_scrolls(folder):
    page = opened(folder)
    page.wait_for_selector("[data-chart=trade-off-size][data-live=yes]")
    page.locator(".candidates summary").click()
    page.locator(".candidates tbody tr").first.hover()
    page.locator(".candidates button").nth(20).focus()
    chosen = page.locator(".trade-off .readout").inner_text()
    page.mouse.wheel(0, 150)
    page.wait_for_timeout(500)  # boundary events of the resting pointer follow the scrolling
    assert page.locator(".trade-off .readout").inner_text() == chosen


def test_layers_are_read_by_pointer_and_keyboard(folder):
    page = opened(folder)
    readout = page.locator("#layer-readout")
    page.locator(".layer").nth(3).hover()
    assert readout.inner_text().startswith("stage 1, block 2, 1×1 (1 of 2)")
    page.locator(".layer").first.focus()
    page.keyboard.press("ArrowDown")
    text = readout.inner_text()
    for part in ("depthwise 3×3", "29 of 58 channels", "58 × 14 × 14", "8 bits", "5.50 µs"):
        assert part in text


def test_without_scripts_every_chart_is_drawn(folder):
    page = opened(folder, java_script_enabled=False)
    figures = page.locator("figure[data-chart]")
    assert figures.count() >= 9
    assert page.locator("figure[data-chart] svg[role=img]").count() == figures.count()
    for drawing in page.locator("figure[data-chart] svg[role=img]").all():
        assert drawing.bounding_box()["height"] > 80


def test_a_printed_page_keeps_its_charts(folder):
    page = opened(folder)
    page.emulate_media(media="print")
    assert len(page.pdf()) > 50_000
    assert layout_faults(page) == []
