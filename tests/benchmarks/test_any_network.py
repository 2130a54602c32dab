"""Peers of a compressed network, on a network and images so small that each row takes a moment."""

from __future__ import annotations

import copy
import csv
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tomli_w
import torch
from onnx import TensorProto
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from benchmarks.common.records import unpack
from benchmarks.peers import any_network, onnx_rows
from benchmarks.peers.any_network import KEYS, Compressed, in_turns, prune_and_train
from benchmarks.peers.rows import ROWS

NETWORK = """
from torch import nn

def build(outputs=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, outputs))
"""
RUNS = ("eager", "fp32-onnxruntime", "quantize_static-per-channel", "quantize_static-u8s8",
        "ours-int8")  # fmt: skip
"""Rows that need no package of a peer."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a compression leaves behind: a network that tells dark images from bright ones."""
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 10), ("test", 10)):
        for name, light in (("dark", 0), ("light", 150)):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(light, light + 100, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{index}.png")
    scope: dict[str, Any] = {}
    (tmp_path / "net.py").write_text(NETWORK)
    exec(NETWORK, scope)
    network = scope["build"]()
    with torch.no_grad():
        network[0].weight.fill_(1 / 27)
        network[0].bias.fill_(1.0)
        network[4].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        network[4].bias.copy_(torch.tensor([4.0, -4.0]))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    inputs = {
        "network": f"{tmp_path / 'net.py'}:build", "weights": str(tmp_path / "weights.safetensors"),
        "data": str(tmp_path / "images"), "image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    recipe = {"inputs": inputs, "quantize": {"images": 16}, "tune": {"batch_size": 8}}
    (out / "recipe.toml").write_text(tomli_w.dumps(recipe))
    write_curve(out, 0.5)
    return tmp_path


def write_curve(out: Path, kept: float) -> None:
    """A table of two candidates, of which the second was chosen."""
    rows = [
        {"shipped": "", "kept": 1, "epochs": 0, "macs": 9000},
        {"shipped": "yes", "kept": kept, "epochs": 3, "macs": 2000},
    ]
    with (out / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def compressed(folder: Path, seconds: float = 60.0) -> Compressed:
    return Compressed(folder / "out", folder / "peers", 1, seconds)


def test_every_row_gets_the_given_network_and_all_are_timed_in_turns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_rows, "has_vnni", lambda: True)
    given, rows = compressed(folder), []
    shutil.copy(given.source("reference").onnx, folder / "out" / "net.onnx")
    for key in RUNS:
        record = any_network._evaluate(given, key)
        assert unpack(record["right"], 20).all(), key
        if key != "eager":  # ships the weights alone
            assert record["bytes"] == (given.folder / record["opens"]).stat().st_size
        rows.append(record | {"row": key})
    assert (given.folder / rows[-1]["opens"]).samefile(folder / "out" / "net.onnx")
    times = in_turns(given, [*rows, {"row": "nncf", "error": "not installed"}], 3)
    assert {key: len(times[key]["milliseconds"]) for key in times} == dict.fromkeys(RUNS, 3)


def test_the_formats_of_onnx_runtime_are_those_of_their_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, int8, uint8 = (
        compressed(folder).source("reference"),
        TensorProto.INT8,
        TensorProto.UINT8,
    )
    kinds = {"quantize_static-per-channel": int8, "quantize_static-u8s8": uint8}
    for (key, activations), (vnni, most) in product(kinds.items(), ((True, 127), (False, 64))):
        monkeypatch.setattr(onnx_rows, "has_vnni", lambda vnni=vnni: vnni)
        graph = onnx.load(ROWS[key].make(source, folder).opens).graph
        stored = {tensor.name: tensor for tensor in graph.initializer}
        rounded = [node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"]
        assert {stored[name].data_type for name in rounded} == {activations}
        (weights,) = [tensor for tensor in stored.values() if len(tensor.dims) == 4]
        assert weights.data_type == int8
        assert np.abs(onnx.numpy_helper.to_array(weights)).max() == most


def test_torch_pruning_trains_as_the_chosen_candidate_and_as_long_as_it_may(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def pruned(network: nn.Module, shape: tuple[int, ...], macs: int) -> nn.Module:
        asked.append((shape, macs))
        return copy.deepcopy(network)

    monkeypatch.setattr(any_network, "pruned_to_macs", pruned)
    for seconds, words in ((60.0, "3 of 3 epochs"), (0.0, "1 of 3 epochs")):
        given, path = compressed(folder, seconds), folder / f"{seconds}" / "network.pt"
        path.parent.mkdir()
        prune_and_train(given, path)
        assert path.with_suffix(".txt").read_text().endswith(words)
        assert isinstance(torch.load(path, weights_only=False), nn.Module)
    assert asked == [((3, 8, 8), 2000)] * 2
    prune_and_train(given, path)  # it is there
    assert len(asked) == 2


def test_a_network_with_all_its_channels_has_no_pruned_peer(folder: Path) -> None:
    write_curve(folder / "out", 1.0)
    with pytest.raises(ValueError, match="the shipped network has all channels"):
        prune_and_train(compressed(folder), folder / "network.pt")


def test_the_rows_are_rows_of_the_table() -> None:
    assert set(KEYS) <= set(ROWS)
    assert [ROWS[key].title for key in KEYS if key.endswith("u8s8")] == [
        "ONNX Runtime `quantize_static`, `per_channel`, U8S8",
        "Torch-Pruning, fine-tuned, `quantize_static` `per_channel`, U8S8",
    ]
