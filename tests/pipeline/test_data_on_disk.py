"""Images in a mapped file go down the chain as images in memory do, to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from secateur.data import MappedPixels, load_folder, sources
from secateur.pipeline.chain import Chain
from secateur.pipeline.quantization_stages import calibration_images
from secateur.pipeline.stages import open_chain
from secateur.recipe import load_recipe
from secateur.store import Store


@pytest.fixture
def chain(recipe_file: Path, image_folder: Path, tmp_path: Path) -> Callable[[str], Chain]:
    recipe = load_recipe(str(recipe_file), ["data.resize=18", "train.augment.flip=true"])

    def make(name: str) -> Chain:
        return open_chain(recipe, Store(tmp_path / name), image_folder, torch.device("cpu"))

    return make


@pytest.mark.slow
def test_it_trains_scans_and_calibrates_as_from_memory(
    chain: Callable[[str], Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = chain("memory")
    memory.stages("train")
    expected = memory.stage("train").tensors("weights.safetensors")
    on_disk = partial(load_folder, memory=0, cache=tmp_path / "cache")
    monkeypatch.setattr(sources, "load_folder", on_disk)
    disk = chain("disk")
    assert isinstance(disk.parts[0].pixels, MappedPixels)
    assert disk.stage("data").id == memory.stage("data").id
    weights = disk.stage("train").tensors("weights.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert disk.stage("scan").json("scan.json") == memory.stage("scan").json("scan.json")
    assert torch.equal(calibration_images(disk), calibration_images(memory))
