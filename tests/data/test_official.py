"""Published data sets: read from the official files, and from nothing else."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import random
import shutil
import tracemalloc
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

from helpers.fuzz import mutated
from secateur.data import geometry, load, open_data
from secateur.data.official import check_files
from secateur.datasets import FACTS
from secateur.errors import DataError, RecipeError
from secateur.imaging import Preparation
from secateur.recipe import Data

MINI = Path(str(resources.files("secateur.data") / "fashionmnist-mini"))
RAW = "FashionMNIST/raw"


def test_mini_is_balanced_small_and_licensed() -> None:
    train, test = (load("fashionmnist-mini", None, train=part) for part in (True, False))
    assert train.pixels.shape == (8000, 1, 28, 28)
    assert train.pixels.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [800] * 10
    assert test.labels.bincount().tolist() == [200] * 10
    assert sum(file.stat().st_size for file in MINI.iterdir()) <= 5_000_000
    assert "Copyright (c) 2017 Zalando SE" in (MINI / "LICENSE").read_text()
    assert train.fingerprint != test.fingerprint


@pytest.mark.full_data
@pytest.mark.skipif("SECATEUR_DATA" not in os.environ, reason="needs the full FashionMNIST")
def test_mini_is_drawn_from_the_official_set() -> None:
    for part in (True, False):
        official = load("fashionmnist", None, train=part).pixels.flatten(1)
        known = {row.numpy().tobytes() for row in official}
        ours = load("fashionmnist-mini", None, train=part).pixels.flatten(1)
        assert all(row.numpy().tobytes() in known for row in ours)


def test_every_set_has_facts_that_fit() -> None:
    names = Data.model_fields["name"].annotation.__args__  # type: ignore[union-attr]
    assert {*FACTS, "folder", "shards"} == set(names)
    for facts in FACTS.values():
        assert facts.training % len(facts.classes) == facts.test % len(facts.classes) == 0
    published = dict(CIFAR10.train_list + CIFAR10.test_list)
    assert {Path(f).name: md5 for f, md5 in FACTS["cifar10"].md5.items()} == published


@pytest.mark.full_data
@pytest.mark.skipif("SECATEUR_DATA" not in os.environ, reason="needs the full data sets")
@pytest.mark.parametrize("name", ["cifar10", "fashionmnist"])
def test_the_official_files_are_as_the_facts_say(name: str) -> None:
    facts = FACTS[name]
    check_files(name, None)
    for train in (True, False):
        images = load(name, None, train=train)
        assert images.pixels.shape == (facts.images(train=train), facts.channels, *[facts.side] * 2)
        per_class = facts.images(train=train) // len(facts.classes)
        assert images.labels.bincount().tolist() == [per_class] * len(facts.classes)


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the excerpt plays the full FashionMNIST."""
    (tmp_path / RAW).mkdir(parents=True)
    for file in MINI.glob("*.gz"):
        shutil.copy(file, tmp_path / RAW)
    mini = FACTS["fashionmnist-mini"]
    md5 = {f"{RAW}/{Path(file).name}": value for file, value in mini.md5.items()}
    monkeypatch.setitem(FACTS, "fashionmnist", replace(mini, md5=md5))
    return tmp_path


def test_reads_packed_and_unpacked_files_in_place(fashion: Path) -> None:
    packed = load("fashionmnist", fashion, train=False)
    for file in list((fashion / RAW).glob("t10k*.gz")):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    before = sorted(fashion.rglob("*"))
    assert load("fashionmnist", fashion, train=False).fingerprint == packed.fingerprint
    assert sorted(fashion.rglob("*")) == before


def test_files_that_are_cut_missing_or_no_files_are_named(fashion: Path, tmp_path: Path) -> None:
    images = fashion / RAW / "train-images-idx3-ubyte.gz"
    intact = images.read_bytes()
    for damaged in (b"", intact[:1000], intact[:5000] + bytes([intact[5000] ^ 1]) + intact[5001:]):
        images.write_bytes(damaged)
        with pytest.raises(DataError, match=r"(corrupt data file|not the official).*train-images"):
            load("fashionmnist", fashion, train=True)
    images.unlink()
    with pytest.raises(DataError, match=r"missing data file.*train-images.*--data"):
        load("fashionmnist", fashion, train=True)
    os.mkfifo(images)
    with pytest.raises(DataError, match=r"corrupt data file.*not a regular file"):
        load("fashionmnist", fashion, train=True)
    with pytest.raises(DataError, match="no such data folder"):
        load("fashionmnist", tmp_path / "none", train=True)
    with pytest.raises(DataError, match=r"missing data file.*cifar-10-batches-py"):
        load("cifar10", tmp_path, train=True)


def test_changed_labels_are_refused_even_where_nothing_is_loaded(fashion: Path) -> None:
    prepare = Preparation((0.5,), (0.5,), 28)
    config = Data(name="fashionmnist")
    open_data(config, fashion, prepare)
    labels = fashion / RAW / "train-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(labels.read_bytes()))
    content[8] = (content[8] + 1) % 10
    labels.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match=r"not the official file.*train-labels.*data.name = folder"):
        open_data(config, fashion, prepare)
    labels.unlink()
    open_data(config, fashion, prepare)  # stored results can be shown without the data


def test_a_gzip_bomb_is_not_unpacked(fashion: Path) -> None:
    bomb = fashion / RAW / "train-labels-idx1-ubyte.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(20):
            file.write(bytes(2**24))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="not the official file"):
            check_files("fashionmnist", fashion)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**24 / 2
    finally:
        tracemalloc.stop()


@given(name=st.sampled_from(["images-idx3", "labels-idx1"]), rng=st.randoms(use_true_random=False))
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_mutated_file_is_refused_or_the_same_content(
    fashion: Path, name: str, rng: random.Random
) -> None:
    path = fashion / RAW / f"t10k-{name}-ubyte.gz"
    expected = load("fashionmnist-mini", None, train=False).fingerprint
    intact = path.read_bytes()
    path.write_bytes(mutated(intact, rng))
    try:
        result = load("fashionmnist", fashion, train=False).fingerprint
    except DataError as error:
        result = str(error)
    path.write_bytes(intact)
    assert result == expected or str(path) in result


def test_cifar10_is_read_in_the_order_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, md5 = tmp_path / "cifar-10-batches-py", {}
    folder.mkdir()
    for number, file in enumerate(FACTS["cifar10"].md5):
        pixels = np.full((2, 3072), 10 * number, np.uint8)
        pixels[1, 1024:2048] = 255
        content = pickle.dumps({b"data": pixels, b"labels": [number, 9]})
        (tmp_path / file).write_bytes(content)
        md5[file] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(FACTS, "cifar10", replace(FACTS["cifar10"], md5=md5))
    train, test = (load("cifar10", tmp_path, train=part) for part in (True, False))
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert test.labels.tolist() == [5, 9]
    assert train.pixels.shape == (10, 3, 32, 32)
    assert train.pixels[3, :, 0, 0].tolist() == [10, 255, 10]


def test_a_resize_below_the_resolution_is_refused() -> None:
    assert geometry(Data(name="cifar10", resize=40), 32).side == 40
    with pytest.raises(RecipeError, match=r"data\.resize.*network\.resolution = 32, found 30"):
        geometry(Data(name="cifar10", resize=30), 32)


def test_parts_of_a_published_set(monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(
        Data(name="fashionmnist-mini", validation=0.25), None, Preparation((0.5,), (0.5,), 8)
    )
    assert data.counts() == {"training": [600] * 10, "validation": [200] * 10, "test": [200] * 10}
    for part, images in {"training": data.training, "validation": data.validation}.items():
        assert images.labels.bincount().tolist() == data.counts()[part]
    assert data.key() == data.test_key() == {}
    assert data.channels == 1
    assert len(data.test) == 2000
    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    with pytest.raises(DataError, match="give --data"):
        open_data(Data(name="folder"), None, Preparation((0.5,), (0.5,), 8))
