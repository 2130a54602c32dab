"""What is refused and said before long work starts, and how long that takes."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from secateur.compression import api, preflight
from secateur.compression import inputs as reading
from secateur.compression.api import plan, run
from secateur.compression.command import Arguments, plan_command
from secateur.compression.inputs import Inputs, read_problem
from secateur.compression.parts import three_folders
from secateur.compression.preflight import power_lines
from secateur.compression.settings import Settings
from secateur.data import Preparation
from secateur.data import folder as folders
from secateur.errors import RecipeError, SecateurError, StoreError

SAMPLE = 8
NETWORK = """
from torch import nn

def build(outputs=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, outputs))

def wide():
    return build(3)
"""


def write_images(root: Path, part: str, classes: tuple[str, ...], count: int) -> None:
    random = np.random.default_rng(0)
    for name in classes:
        (root / part / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / name / f"{index}.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of two classes, of which no more than a sample may be decoded."""
    write_images(tmp_path / "images", "train", ("cat", "dog"), 50)
    (tmp_path / "net.py").write_text(NETWORK)
    decode = folders.load_pixels

    def sampled(files, *rest):  # type: ignore[no-untyped-def]
        assert len(files.files) <= SAMPLE, "all images are decoded"
        return decode(files, *rest)

    monkeypatch.setattr(folders, "load_pixels", sampled)
    monkeypatch.setattr(reading, "SAMPLE", SAMPLE)
    return tmp_path


@pytest.mark.parametrize(
    ("function", "weight", "renamed", "message"),
    [
        ("build", (4, 3, 3, 3), "dog", "the given network guesses"),
        ("wide", (4, 3, 3, 3), "dog", "other outputs than the data has classes"),
        ("build", (5, 3, 3, 3), "dog", "0.weight"),
        ("build", (4, 3, 3, 3), "hound", "hound"),
    ],
)
def test_bad_input_fails_before_the_images_are_decoded(
    folder: Path, function: str, weight: tuple[int, ...], renamed: str, message: str
) -> None:
    write_images(folder / "images", "test", ("cat", renamed), 2)
    outputs = 3 if function == "wide" else 2
    weights = {
        "0.weight": torch.zeros(weight), "0.bias": torch.zeros(4),
        "3.weight": torch.zeros(outputs, 4), "3.bias": torch.zeros(outputs),
    }  # fmt: skip
    save_file(weights, folder / "weights.safetensors")
    inputs = Inputs(
        f"{folder / 'net.py'}:{function}", folder / "weights.safetensors", folder / "images"
    )
    with pytest.raises(SecateurError, match=message):
        read_problem(inputs, torch.device("cpu"))


def write_network(folder: Path) -> Inputs:
    """A network that recognizes the cats, which are dark, and images to compress it with."""
    random = np.random.default_rng(0)
    for part, name in product(("train", "test"), ("cat", "dog")):
        (folder / "bright" / part / name).mkdir(parents=True)
        for index in range(50):
            pixels = random.integers(0, 100, (8, 8, 3), dtype=np.uint8) + 120 * (name == "dog")
            Image.fromarray(pixels.astype(np.uint8)).save(
                folder / "bright" / part / name / f"{index}.png"
            )
    weights = {
        "0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.zeros(4),
        "3.weight": torch.tensor([[-1.0] * 4, [1.0] * 4]), "3.bias": torch.zeros(2),
    }  # fmt: skip
    save_file(weights, folder / "weights.safetensors")
    return Inputs(
        f"{folder / 'net.py'}:build", folder / "weights.safetensors", folder / "bright",
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip


def test_a_plan_decodes_a_sample_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(read_problem(write_network(folder), torch.device("cpu")), Settings(), folder / "out")
    assert "images   80 to train, 20 to validate, 100 to test" in capsys.readouterr().err


def test_the_plan_tells_of_merged_layers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = read_problem(write_network(folder), torch.device("cpu"))
    plan(problem, Settings(merge=True), folder / "out")
    assert "then merged layers, to 0.8, 0.65, 0.5 of the latency" in capsys.readouterr().err
    plan(problem, Settings(), folder / "out")
    assert "merged" not in capsys.readouterr().err


def test_three_folders_are_counted_without_decoding(folder: Path) -> None:
    for part, count in (("a", 3), ("b", 2), ("c", 1)):
        write_images(folder / "three", part, ("cat", "dog"), count)
    named = {name: folder / "three" / part for name, part in
             (("train", "a"), ("validation", "b"), ("test", "c"))}  # fmt: skip
    parts = three_folders(named, Preparation((0.5,) * 3, (0.5,) * 3, 8))
    assert parts.counts == {"training": [3, 3], "validation": [2, 2]}
    training, validation = parts.read()
    assert (len(training), len(validation), parts.test_images) == (6, 4, 2)


def test_too_little_time_is_known_before_the_images_are_decoded(folder: Path) -> None:
    inputs = write_network(folder)
    settings = Settings.model_validate({"goal": {"max_drop": 5.0, "within_seconds": 1}})
    with pytest.raises(RecipeError, match="the time is too short for one candidate"):
        run(read_problem(inputs, torch.device("cpu")), settings, inputs, folder / "out")


def test_a_full_disk_is_known_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=100)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(api, "measure_step", lambda problem: pytest.fail("a step is measured"))
    inputs = write_network(folder)
    with pytest.raises(StoreError, match=r"not enough space .*out\)"):
        run(read_problem(inputs, torch.device("cpu")), Settings(), inputs, folder / "out")


def test_a_plan_takes_less_than_ten_seconds_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    plan_command(Arguments(), tmp_path / "out")
    assert time.monotonic() - start < 10
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert "fewest to train: 640 of 'T-shirt/top'" in said
    assert "takes    about" in said


@pytest.mark.parametrize(
    ("max_drop", "test_images", "words"),
    [
        (0.5, 200, ["200 test images cannot show 0.5 points; about 12,000 are needed"]),
        (1.0, 2000, ["2,000 test images may not show 1 point; about 2,800 are needed"]),
        (2.0, 2000, []),
    ],
)
def test_too_few_test_images_are_named_with_the_number_needed(
    max_drop: float, test_images: int, words: list[str]
) -> None:
    lines = [line.removeprefix("warning  ") for line in power_lines(max_drop, 0.9, test_images)]
    assert lines == words
