"""What is said before the work starts: counts, room on disk, and whether the test can show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from secateur.data import load_folder, open_data, preflight
from secateur.data.requirements import DISAGREEMENT
from secateur.imaging import Preparation
from secateur.recipe import Data

CELLS = Path(__file__).parents[2] / "results" / "study" / "cells"
PREPARE = Preparation((0.5,), (0.5,), 28)


def test_the_assumed_disagreement_is_that_of_the_study() -> None:
    ratios = []
    for file in CELLS.glob("*/*.safetensors"):
        right = load_file(file)
        if {"reference", "quantized"} <= set(right):
            errors = 1 - right["reference"].mean()
            ratios.append((right["reference"] != right["quantized"]).mean() / errors)
    assert len(ratios) >= 5
    assert min(ratios) > 0.34
    assert max(ratios) < 0.5
    assert np.median(ratios) == pytest.approx(DISAGREEMENT, abs=0.05)


def test_too_few_test_images_are_named_with_the_number_needed(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count if name == "cat" else 2):
                Image.new("L", (8, 8)).save(tmp_path / part / name / f"{index}.png")
    flight = preflight(load_folder(tmp_path, PREPARE), margin=0.005, accuracy=0.9)
    assert flight.counts == {"training": [3, 1], "validation": [1, 1], "test": [3, 2]}
    assert flight.has_room
    assert not flight.has_power
    lines = list(flight.lines())
    assert "training: 4 images, 1 or more of each class (fewest: 'dog')" in lines
    assert lines[-1] == "5 test images cannot show 0.5 points; about 11,000 are needed"


def test_a_large_set_says_what_room_it_needs(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.new("L", (8, 8)).save(tmp_path / name / f"{index}.png")
    flight = preflight(load_folder(tmp_path, PREPARE, memory=2000), margin=0.05, accuracy=0.9)
    assert flight.disk_bytes == 8 * 28 * 28  # the two test images fit in memory
    assert any("GB are free" in line for line in flight.lines())


def test_the_excerpt_can_show_a_point_or_two() -> None:
    data = open_data(Data(name="fashionmnist-mini"), None, PREPARE)
    assert not preflight(data, margin=0.005, accuracy=0.9).has_power
    assert preflight(data, margin=0.015, accuracy=0.9).has_power
