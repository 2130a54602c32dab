"""The page of halved networks: counts, rows and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import networks
from benchmarks.networks import apart, build, by_secateur, listed, main, records
from benchmarks.networks_report import left, page, summary


def measured(after: int, **more) -> dict:
    return {
        "parameters": [1000, after], "macs": [2_000_000, 500_000], "error": 1e-15, "seconds": 1.25,
        "groups": 3, "protected": {"they are the network's output": [1, "fc"]}, "size": 224,
    } | more  # fmt: skip


def row(name: str, ours: dict, theirs: dict) -> dict:
    return {
        "network": name, "secateur": ours, "torch_pruning": theirs,
        "processor": "a processor", "versions": {"torch": "2"}, "commit": "abc",
    }  # fmt: skip


ROWS = {
    "b": row("b", measured(300), {"parameters": [1000, 350], "seconds": 1}),
    "a": row("a", {"failure": "Error: a | b"}, {"failure": "NoneType"}),
    "timm c": row(
        "timm c",
        measured(1000, error=1e-3, protected={"softmax mixes them": [4, "blocks.0"]}),
        {"parameters": [1000, 1000], "seconds": 1},
    ),
}


def test_counts_over_all_networks() -> None:
    lines = dict(line[2:].split(" | ", 1) for line in summary(ROWS)[2:] if line.startswith("| "))
    assert lines["networks"] == "3 | 3 |"
    assert lines["run and return the same shape after the removal"] == "2 | 2 |"
    assert lines["below 0.45 of the parameters"] == "1 | 1 |"
    assert lines["nothing removed"] == "1 | 1 |"
    assert lines["differ from the masked network by more than 1e-6"] == "1 | not compared |"
    assert lines["planned in at most 5 s"] == "2 | – |"
    assert lines["fail or are refused"] == "1 | 1 |"
    further = "removes half, and at least 0.01 of the parameters more than the other"
    assert lines[further] == "1 | 0 |"
    greedy = {"parameters": [1000, 200], "narrowest": 0.2, "seconds": 1}
    for narrowest, counts in ((0.2, ("1", "0")), (0.5, ("0", "1"))):
        beyond = ROWS | {"d": row("d", measured(300), greedy | {"narrowest": narrowest})}
        lines = dict(line[2:].split(" | ", 1) for line in summary(beyond) if line.startswith("| "))
        over = "removes more than half: a layer keeps less than 0.45 of its channels"
        assert lines[over] == f"not compared | {counts[0]} |"
        assert lines[further] == f"1 | {counts[1]} |"
    assert summary(ROWS)[-1] == "Largest error: 1.0e-03."


def test_the_page_lists_networks_of_torchvision_first_and_those_that_are_missing() -> None:
    text = page(ROWS, ["timm c", "b", "a", "timm d"])
    assert "Not measured (1): timm d." in text
    rows = [line for line in text.splitlines() if line.startswith(("| a ", "| b ", "| timm "))]
    assert [line.split(" | ")[0] for line in rows] == ["| a", "| b", "| timm c"]
    assert rows[0].endswith("| fails: NoneType | fails: Error: a / b |")
    assert rows[1].endswith(" | 1,000 | 0.30 | 2 M | 0.25 | 1e-15 | 1.2 | 0.35 | nothing |")
    assert "4 layers (`blocks.0`): softmax mixes them" in rows[2]
    assert "Nothing is measured yet" in page({}, ["a"])
    assert left({"failure": ""}) is None
    assert "Planning by an objective" not in text


def test_the_page_has_the_newest_times_of_planning_by_an_objective() -> None:
    times = [
        {"network": "b", "repeat": 2, "seconds": {"fraction": 2.0, "macs": m, "parameters": 2.5},
         "processor": "a processor", "commit": "abc"} for m in (9.0, 3.0)
    ]  # fmt: skip
    rows = [line for line in page(ROWS, ["b"], times).splitlines() if line.startswith("| b | 2.00")]
    assert rows == ["| b | 2.00 | 3.00 (1.50×) | 2.50 (1.25×) |"]


def test_every_network_of_the_list_is_there_once() -> None:
    words = [line.split()[1:] for line in networks.LIST.read_text().splitlines() if line[0] != "#"]
    assert len(listed()) == sum(map(len, words))
    assert listed()["resnet18"] == "torchvision"
    assert set(listed().values()) == {"torchvision", "timm"}


def test_a_network_is_built_so_that_a_wrong_index_shows() -> None:
    network, images = build("squeezenet1_1")
    assert images.shape == (2, 3, 224, 224)
    assert all(float(p.detach().std()) > 0 for p in network.parameters() if p.numel() > 1)
    assert not network.training


def test_a_removal_is_compared_with_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str) -> tuple[nn.Module, torch.Tensor]:
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3), nn.Flatten())
        return nn.Sequential(*layers).eval(), torch.randn(2, 3, 6, 6)

    monkeypatch.setattr(networks, "build", small)
    record = by_secateur("small")
    assert record["parameters"] == [8 * 27 + 8 + 16 + 5 * 72 + 5, 4 * 27 + 4 + 8 + 5 * 36 + 5]
    assert record["macs"] == [8 * 27 * 16 + 5 * 72 * 4, 4 * 27 * 16 + 5 * 36 * 4]
    assert record["error"] < 1e-12
    assert record["protected"] == {"they are the network's output": [1, "2"]}


def _fail(name: str) -> dict:
    raise ValueError(f"{name}\nand more")


def test_a_failure_is_a_result_and_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    assert apart(_fail, "odd") == {"failure": "ValueError: odd"}
    path, table = tmp_path / "records.jsonl", tmp_path / "page.md"
    path.write_text("".join(json.dumps(each) + "\n" for each in ROWS.values()))
    pytest.importorskip("timm")
    pytest.importorskip("torch_pruning")
    main([str(path), str(table), *ROWS])
    assert len(records(path)) == 3
    assert table.read_text() == page(records(path), list(listed()))
