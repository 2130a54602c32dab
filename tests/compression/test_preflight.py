"""What is refused and said before long work starts, and how long that takes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from secateur.compression import inputs as reading
from secateur.compression.command import Arguments, plan_command
from secateur.compression.inputs import Inputs, read_problem
from secateur.compression.preflight import power_lines
from secateur.data import folder as folders
from secateur.errors import SecateurError

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
        (1.0, 2000, ["2,000 test images may not show 1 points; about 2,800 are needed"]),
        (2.0, 2000, []),
    ],
)
def test_too_few_test_images_are_named_with_the_number_needed(
    max_drop: float, test_images: int, words: list[str]
) -> None:
    lines = [line.removeprefix("warning  ") for line in power_lines(max_drop, 0.9, test_images)]
    assert lines == words
