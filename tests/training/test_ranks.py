"""Two processes train as one does with the same batch, up to rounding."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from helpers.rank_work import a_network, shuffled_gradients, trained, work
from secateur.errors import UsageError
from secateur.training import ranks
from secateur.training.shards import Shards


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (2, port, str(tmp_path)), nprocs=2)
    made = {path.stem: load_file(path) for path in tmp_path.glob("*-[01].safetensors")}
    # Every process has the same network, average and curve, bit for bit, resumed or not.
    for name in ("whole", "resumed", "parts"):
        for key, value in made[f"{name}-0"].items():
            assert torch.equal(value, made[f"{name}-1"][key]), (name, key)
    for key, value in made["whole-0"].items():
        assert torch.equal(value, made["resumed-0"][key]), key
    assert not made["whole-0"]["network.0.weight"][::2, :, 0].any()
    # One process with the whole batch: synchronized statistics, or those of the same parts.
    (tmp_path / "alone").mkdir()
    for name, shards in (("whole", 1), ("parts", 2)):
        alone = trained(tmp_path / "alone", shards)
        for key, value in made[f"{name}-0"].items():
            assert torch.allclose(value.double(), alone[key].double(), rtol=1e-4, atol=1e-5), key
    for key, value in shuffled_gradients().items():
        for rank in (0, 1):
            gradient = made[f"shuffled-{rank}"][key]
            assert torch.allclose(gradient, value, rtol=1e-6, atol=1e-9), (key, rank)
    for key in ("network.3.weight", "average.3.weight"):
        assert not torch.allclose(made["whole-0"][key], made["parts-0"][key], rtol=1e-3)


def test_parts_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world", lambda: 2)
    with pytest.raises(UsageError, match=r"train\.shards.*a multiple of 2 processes"):
        Shards(a_network(), 3)


def test_a_process_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks.join(torch.device("cpu")) == torch.device("cpu")
    assert (ranks.world(), ranks.rank(), ranks.agreed("x")) == (1, 0, "x")


@pytest.mark.slow
def test_the_command_trains_in_two_processes(
    recipe_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "secateur", "train", str(recipe_file), "--devices", "2"]
    command += ["--data", str(image_folder), "--out", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("report: ") == 1  # process 0 alone speaks
    (stage,) = (tmp_path / "stages").glob("train-*/stage.json")
    assert json.loads(stage.read_text())["files"].keys() >= {"weights.safetensors"}
