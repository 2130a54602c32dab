"""What the data stage and the bench stage know of a folder: nothing changes unnoticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data import normalization
from secateur.pipeline.chain import Chain
from secateur.pipeline.reference import data_key
from secateur.pipeline.shipping_stages import bench_key
from secateur.pipeline.stages import open_chain
from secateur.recipe import load_recipe
from secateur.store import Store


def chain_of(recipe_file: Path, folder: Path, *sets: str) -> Chain:
    recipe = load_recipe(str(recipe_file), list(sets))
    return open_chain(recipe, Store(folder.parent / "out"), folder, torch.device("cpu"))


def keys(recipe_file: Path, folder: Path) -> tuple[dict[str, object], dict[str, object]]:
    chain = chain_of(recipe_file, folder)
    return data_key(chain), bench_key(chain)


def brighten(folder: Path) -> None:
    path = next(folder.rglob("*.png"))
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def move_one(folder: Path) -> None:
    path = folder / "left" / "0.png"
    path.rename(folder / "right" / "another.png")


def rename_class(root: Path) -> None:
    for part in ("train", "test"):
        (root / part / "left").rename(root / part / "l")


@pytest.mark.parametrize(
    ("change", "data_changes", "bench_changes"),
    [
        (lambda root: brighten(root / "train"), True, False),
        (lambda root: brighten(root / "test"), False, True),
        (lambda root: move_one(root / "train"), True, False),
        (lambda root: move_one(root / "test"), False, True),
        (rename_class, True, False),
        (lambda root: (root / "train" / "left" / "notes.txt").touch(), False, False),
    ],
)
def test_changed_images_labels_and_names_change_the_keys(
    recipe_file: Path,
    image_folder: Path,
    change: Callable[[Path], None],
    data_changes: bool,
    bench_changes: bool,
) -> None:
    before = keys(recipe_file, image_folder)
    assert keys(recipe_file, image_folder) == before
    change(image_folder)
    after = keys(recipe_file, image_folder)
    assert (after[0] != before[0]) == data_changes
    assert (after[1] != before[1]) == bench_changes


def test_a_validation_folder_is_used_as_it_is(recipe_file: Path, image_folder: Path) -> None:
    shutil.copytree(image_folder / "test", image_folder / "val")
    chain = chain_of(recipe_file, image_folder)
    training, validation = chain.parts
    assert (len(training), len(validation)) == (24, 12)
    assert torch.equal(validation.pixels[:], chain.data_set.test.pixels[:])
    mean, std = normalization(training, "dataset")
    assert (chain.prepare.mean, chain.prepare.std) == (mean, std)


def test_the_preparation_of_a_recipe_is_in_the_metadata(
    recipe_file: Path, image_folder: Path
) -> None:
    plain = chain_of(recipe_file, image_folder)
    assert set(plain.metadata) == {"classes", "name", "mean", "std", "resolution"}
    sets = ("data.resize=20", "data.interpolation=bicubic", "data.channels=1")
    chain = chain_of(recipe_file, image_folder, *sets)
    assert chain.input_shape == (1, 16, 16)
    assert chain.parts[0].pixels[:].shape[1:] == (1, 20, 20)
    assert type(chain.prepare).from_metadata(chain.metadata) == chain.prepare
    assert (chain.prepare.side, chain.prepare.interpolation) == (20, "bicubic")
