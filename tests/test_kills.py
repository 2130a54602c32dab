"""A chain of stages that is killed, or loses its power, at any disk operation ends the same.

The stages here are small and write files as the real ones do: tensors, JSON, a checkpoint that is
resumed, and a file that some library writes by itself. ``helpers/kills.py`` kills real runs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from helpers.kills import NEVER, die_at
from helpers.power_cut import PowerCut, power_cuts
from secateur.disk import write_json
from secateur.store import Stage, Store, load_tensors, save_tensors


def _data(folder: Path) -> None:
    save_tensors(folder / "split.safetensors", {"training": torch.arange(4)})
    write_json(folder / "data.json", {"classes": ["left", "right"]})


def _train(folder: Path) -> None:
    path = folder / "checkpoint.safetensors"
    weight = load_tensors(path)["weight"] if path.exists() else torch.zeros(3)
    while weight[0] < 3:
        weight = weight + 1
        save_tensors(path, {"weight": weight})
    save_tensors(folder / "weights.safetensors", {"weight": weight})
    path.unlink(missing_ok=True)


def _export(folder: Path) -> None:
    (folder / "network.onnx").write_bytes(b"by a library" * 100)
    write_json(folder / "about.json", {"bytes": 1200})


def chain(root: Path) -> dict[str, str]:
    """Make or reuse every stage; names and digests of all their files."""
    store = Store(root)
    data = store.stage("data", {}, {}, _data)
    train = store.stage("train", {"epochs": 3}, {"data": data}, _train)
    export = store.stage("export", {}, {"train": train}, _export)
    return {f"{s.name}/{k}": v for s in (data, train, export) for k, v in _files(s).items()}


def _files(stage: Stage) -> dict[str, str]:
    files: dict[str, str] = stage.manifest["files"]
    return files


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are of forked processes")
def test_a_kill_at_any_operation_changes_nothing(tmp_path: Path) -> None:
    expected, root, kills = chain(tmp_path / "whole"), tmp_path / "run", 0
    while True:
        status = die_at(kills + 1, lambda: chain(root), tmp_path / "error.txt")
        assert chain(root) == expected
        shutil.rmtree(root)
        if not os.WIFSIGNALED(status):
            break
        kills += 1
    assert status == 0
    assert kills > 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are of forked processes")
def test_kills_one_after_another_change_nothing(tmp_path: Path) -> None:
    """Each process goes on where the last one was killed, a few operations further."""
    root, kills, status = tmp_path / "run", 0, -1
    while status != 0:
        status = die_at(9 if kills < 100 else NEVER, lambda: chain(root), tmp_path / "error.txt")
        kills += os.WIFSIGNALED(status)
        assert os.WIFSIGNALED(status) or status == 0, (tmp_path / "error.txt").read_text()
    assert kills > 3
    assert chain(root) == chain(tmp_path / "whole")


def test_a_power_cut_at_any_operation_changes_nothing(tmp_path: Path) -> None:
    """What was not flushed is lost: files are empty that were renamed too early."""
    expected, root, cuts = chain(tmp_path / "whole"), tmp_path / "run", 0
    root.mkdir()
    for cut in power_cuts(root):
        try:
            with cut:
                chain(root)
        except PowerCut:
            cuts += 1
        else:
            break
        assert chain(root) == expected
        shutil.rmtree(root)
        root.mkdir()
    assert cuts > 30
