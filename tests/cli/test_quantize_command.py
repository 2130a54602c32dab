"""``secateur quantize FILE.onnx``: a folder or an array of images in, an int8 file out."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.onnx_files import Gated, exported
from secateur.cli.app import app
from secateur.errors import DataError, RecipeError

NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("float") / "net.onnx"
    return exported(Gated().eval(), (3, 16, 16), path, dynamo=False, opset=17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir()
        for number in range(8):
            pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def run(*arguments):
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)], catch_exceptions=True)


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_a_folder_of_images_quantizes_a_file(float_file, folder, tmp_path):
    done = run(
        float_file, "--data", folder, "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25",
        "-o", tmp_path / "small.onnx", "--set", "method=minmax", "--json",
    )  # fmt: skip
    assert done.exception is None
    about = json.loads(done.stdout)
    assert about["parity"]["images"] == 5  # validation: a fifth of what is left for training
    assert about["parity"]["correct"] is not None
    stored = metadata(tmp_path / "small.onnx")
    assert json.loads(stored["classes"]) == list(NAMES)
    assert stored["resolution"] == "16"


def test_an_array_of_prepared_images_does_too(float_file, tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.standard_normal((16, 3, 16, 16)).astype(np.float32))
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    done = run(
        float_file, "--data", tmp_path / "x.npy", "--set", "quantize.method=minmax",
        "-o", tmp_path / "small.onnx", "--classes", tmp_path / "names.txt",
    )  # fmt: skip
    assert done.exception is None
    assert json.loads(metadata(tmp_path / "small.onnx")["classes"]) == list(NAMES)


def test_mistakes_are_one_line(float_file, folder):
    for arguments, kind, part in [
        ([float_file], DataError, "give --data"),
        ([float_file, "--data", folder], DataError, "--mean and --std"),
        ([float_file, "--data", folder, "--mean", "a", "--std", "1"], RecipeError, "--mean"),
        ([float_file, "--data", folder, "--set", "bits"], RecipeError, "key=value"),
        ([float_file, "--data", folder / "no.npy"], DataError, "cannot read images"),
    ]:
        error = run(*arguments).exception
        assert isinstance(error, kind)
        assert part in str(error)
        assert "\n" not in str(error)


def test_a_recipe_is_still_a_recipe(tmp_path):
    error = run(tmp_path / "missing.toml").exception
    assert isinstance(error, RecipeError)
    assert "cannot read recipe" in str(error)
