"""ONNX files and exported programs: quantized and packed without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from secateur.benchmarking.cost import macs, parameters
from secateur.compression.api import run
from secateur.compression.inputs import SHIPPED, Inputs, read_problem
from secateur.compression.onnx_network import OnnxNetwork, count, preparation_of_file
from secateur.compression.settings import Settings
from secateur.data import Preparation, load
from secateur.errors import NetworkError, RecipeError
from secateur.onnx_ir.export import export_onnx

DEFAULT = Preparation((0.4, 0.4, 0.4), (0.2, 0.2, 0.2), 224, 256)


def network() -> nn.Module:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 4)).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    export_onnx(network(), (3, 16, 16), tmp_path / "net.onnx", {})
    return tmp_path / "net.onnx"


def test_runs_as_the_network_that_was_exported(file: Path) -> None:
    prepare = preparation_of_file(file, DEFAULT)
    images = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(OnnxNetwork(file, prepare, 1)(images), network()(images))


def test_counts_as_the_network_that_was_exported(file: Path) -> None:
    loaded = OnnxNetwork(file, preparation_of_file(file, DEFAULT), 1)
    shape = (3, 16, 16)
    counted, elements = count(loaded, shape)
    assert (counted, elements) == count(network(), shape)
    assert counted == macs(network(), shape) == 8 * 14 * 14 * 27 + 8 * 4
    assert elements == parameters(network())


def test_preparation_is_that_of_the_file(file: Path, tmp_path: Path) -> None:
    assert preparation_of_file(file, DEFAULT) == Preparation(DEFAULT.mean, DEFAULT.std, 16)
    own = Preparation((0.1,), (0.3,), 20, 24)
    gray = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    export_onnx(gray, (1, 20, 20), tmp_path / "gray.onnx", own.to_metadata())
    assert preparation_of_file(tmp_path / "gray.onnx", DEFAULT) == own


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    export_onnx(nn.Sequential(nn.Conv2d(5, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (5, 9, 9),
                tmp_path / "net.onnx", {})  # fmt: skip
    with pytest.raises(NetworkError, match=r"expected one input \(N, 1 or 3, R, R\)"):
        preparation_of_file(tmp_path / "net.onnx", DEFAULT)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, train, count_each in (("train", True, 20), ("val", True, 40), ("test", False, 20)):
        source = load("fashionmnist-mini", None, train=train)
        for label, name in enumerate(source.classes):
            folder = root / part / name.replace("/", " ")
            folder.mkdir(parents=True)
            members = torch.where(source.labels == label)[0]
            chosen = members[-count_each:] if part == "val" else members[:count_each]
            for index in chosen.tolist():
                Image.fromarray(source.pixels[index, 0].numpy()).save(folder / f"{index}.png")
    return root


SETTINGS = Settings.model_validate(
    {
        "goal": {"max_drop": 9.0},
        "bench": {"repeats": 3, "warmup": 1, "threads": 1},
        "quantize": {"images": 64, "scan_images": 100},
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["net.onnx", "net.pt2"])
def test_is_quantized_and_packed(images: Path, tmp_path: Path, form: str) -> None:
    problem = read_problem(Inputs(), torch.device("cpu"))
    given = problem.network.to(memory_format=torch.contiguous_format)
    path = tmp_path / form
    if form == "net.onnx":
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(given, (torch.zeros(2, 1, 28, 28),), path, dynamo=True, verbose=False,
                          dynamic_shapes=(batch,), input_names=["pixels"])  # fmt: skip
    else:
        torch.export.save(torch.export.export(given, (torch.zeros(1, 1, 28, 28),)), path)
    mean, std = problem.prepare.mean, problem.prepare.std
    inputs = Inputs(str(path), data=images, mean=mean, std=std)
    result = run(read_problem(inputs, torch.device("cpu")), SETTINGS, inputs, tmp_path / "out")
    assert result.verdict.kind == "meets"
    weights = sum(file.stat().st_size for file in tmp_path.glob(f"{form}*"))  # external ones too
    assert result.packed.stat().st_size < 0.3 * weights
    assert "eager" not in result.summary
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(result.onnx).graph.node)
    assert np.char.count((tmp_path / "out" / "curve.csv").read_text(), "\n") >= 3


def test_weights_beside_a_file_are_refused(images: Path, file: Path) -> None:
    with pytest.raises(RecipeError, match="a file that has its weights"):
        read_problem(Inputs(str(file), weights=file, data=images), torch.device("cpu"))


def test_classes_that_do_not_fit_are_named(images: Path, file: Path) -> None:
    with pytest.raises(NetworkError, match=r"expected scores \(N, 10\), found \(1, 4\)"):
        read_problem(Inputs(str(file), data=images), torch.device("cpu"))


def test_shipped_network_is_small() -> None:
    from importlib import resources

    file = resources.files("secateur.models") / f"{SHIPPED}.safetensors"
    assert len(file.read_bytes()) <= 3_000_000
