"""The figure of compressed networks."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.compress_figure import draw


def _record(network: str, before: float, after: float) -> str:
    def variant(size: float, top1: float) -> dict[str, object]:
        return {"size_bytes": size, "top1": {"value": top1}}

    variants = [variant(before, 60.0), variant(after * 2, 59.5), variant(after, 59.5)]
    return json.dumps({"network": network, "variants": variants}) + "\n"


def test_each_finished_network_has_a_row_with_computed_ratios(tmp_path: Path) -> None:
    records = _record("small", 4e6, 1e6) + '{"network": "failed", "error": "no"}\n'
    (tmp_path / "networks.jsonl").write_text(records + _record("large", 8e6, 1e6))
    draw(tmp_path)
    drawn = (tmp_path / "outcome.svg").read_text()
    labels = ["large: 8.00× smaller, 60.0 → 59.5 %", "small: 4.00× smaller, 60.0 → 59.5 %"]
    assert [drawn.index(label) > 0 for label in labels] == [True, True]
    assert drawn.index(labels[0]) < drawn.index(labels[1])
    assert "failed" not in drawn
