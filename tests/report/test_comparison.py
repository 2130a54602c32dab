"""Runs side by side: the same numbers as in their records, the best of each row marked."""

import pytest

from helpers.browser import accessibility_faults, layout_faults, needs_browser, open_page
from secateur.errors import StoreError
from secateur.report.comparison_page import compare, read_runs, run_names, write_comparison
from secateur.report.contents import Estimate, Provenance, Report, Variant, Verdict


def a_report(top1, size, latency, seed):
    def of(value):
        return Estimate(value=value, low=value - 0.5, high=value + 0.5, n=1000)

    reference = Variant(name="reference", top1=of(93.0), size_bytes=5e6, latency=of(2.0))
    final = Variant(name="packed", top1=of(top1), size_bytes=size, latency=of(latency))
    return Report(
        title="run",
        verdict=Verdict(sentence="16× smaller"),
        variants=(reference, final),
        provenance=Provenance(facts={"Seed": seed, "Threads": "2"}),
    )


ONE, OTHER = a_report(92.5, 3e5, 0.4, "0"), a_report(92.1, 1e5, 0.4, "1")


def test_what_ships_is_compared_and_the_best_is_marked():
    rows = {row.name: row for row in compare([ONE, OTHER])}
    assert rows["Top-1, %"].values == ("92.50", "92.10")
    assert rows["Top-1, %"].notes[0] == "92.00 to 93.00"
    assert rows["Top-1, %"].best == 0
    assert rows["Size"].values == ("300 kB", "100 kB")
    assert rows["Size"].best == 1
    assert rows["Latency, ms"].best is None
    assert "MACs" not in rows


def test_facts_that_differ_are_named_and_no_others():
    rows = {row.name: row for row in compare([ONE, OTHER])}
    assert rows["Seed"].values == ("0", "1")
    assert "Threads" not in rows


def test_names_tell_runs_from_each_other(tmp_path):
    assert run_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert run_names([tmp_path / "a/net", tmp_path / "b/net"]) == ["a/net", "b/net"]
    assert len(set(run_names([tmp_path, tmp_path]))) == 2


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(StoreError, match="not a run"):
        read_runs([tmp_path])


def test_a_report_is_read_where_there_are_no_records(tmp_path):
    (tmp_path / "report.json").write_text(ONE.model_dump_json(exclude_defaults=True))
    assert read_runs([tmp_path]) == [ONE]


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_sound(tmp_path, width):
    write_comparison(["one", "other"], [ONE, OTHER], tmp_path / "page.html")
    page = open_page((tmp_path / "page.html").as_uri(), width=width)
    assert layout_faults(page) == []
    assert accessibility_faults(page) == []
    assert page.problems == []
    best = page.locator(".best").all_inner_texts()
    assert any(text.startswith("92.50") for text in best)
    assert any(text.startswith("100 kB") for text in best)
