"""Shards of encoded images: the same images as in memory, decoded when they are used."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data import Images, streamed
from secateur.data.images import batches, fingerprint_of, in_turn, parts_of
from secateur.data.streamed import ShardDataSet, StreamedPixels
from secateur.errors import DataError
from secateur.imaging import Preparation
from secateur.recipe import Augment, Train
from secateur.training.evaluation import correct
from secateur.training.loop import train

PREPARE = Preparation((0.5,) * 3, (0.25,) * 3, 8)


def encoded(index: int, label: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 60, (9 + index % 4, 12, 3), dtype=np.uint8)
    pixels[:, :, label] += 150
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, count: int, start: int = 0, label: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for index in range(start, start + count):
            for suffix, data in (
                (".png", encoded(index, index % 3)),
                (".cls", label if label is not None else str(index % 3).encode()),
                (".json", b"{}"),
            ):
                member = tarfile.TarInfo(f"{index:05}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(streamed, "CACHED", 0)  # tiny sets are streamed too
    return


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    write_tar(root / "train-0.tar", 14)
    write_tar(root / "train-1.tar", 10, 14)
    write_tar(root / "val-0.tar", 6, 24)
    return root


def in_memory(images: Images) -> Images:
    return Images(images.pixels[:], images.labels, images.classes)


def test_images_are_those_that_were_written(root: Path) -> None:
    data = ShardDataSet(root, PREPARE)
    assert data.classes == ("0", "1", "2")
    assert data.report == ("train: 24 images in 2 shards", "val: 6 images in 1 shard")
    assert {part: sum(counts) for part, counts in data.counts().items()} == {
        "training": 18, "validation": 6, "test": 6,
    }  # fmt: skip
    assert isinstance(data.source.pixels, StreamedPixels)
    assert data.source.pixels.shape == (24, 3, 8, 8)
    for index in (0, 13, 14, 23):
        picture = Image.open(io.BytesIO(encoded(index, index % 3)))
        expected = torch.from_numpy(PREPARE.fit(picture))
        assert torch.equal(data.source.pixels[index : index + 1][0], expected)
    brightest = data.test.pixels[:].float().mean((2, 3)).argmax(1)
    assert torch.equal(brightest, data.test.labels)
    chosen = torch.tensor([20, 3, 3])
    taken = data.source.take(chosen)
    assert torch.equal(taken.pixels[:], data.source.pixels[:][chosen])
    assert torch.equal(taken.take(torch.tensor([1])).pixels[:], data.source.pixels[3:4])


def test_three_parts_and_one_are_divided_as_a_folder_is(root: Path) -> None:
    write_tar(root / "test-0.tar", 5, 100)
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    data = ShardDataSet(root, PREPARE)
    assert data.classes == ("red", "green", "blue")
    assert (len(data.training), len(data.validation), len(data.test)) == (24, 6, 5)
    brightest = data.validation.pixels[:].float().mean((2, 3)).argmax(1)
    assert torch.equal(brightest, data.validation.labels)
    for name in ("val-0.tar", "test-0.tar"):
        (root / name).unlink()
    data = ShardDataSet(root, PREPARE, seed=1)
    sizes = (len(data.training), len(data.validation), len(data.test))
    assert sizes == (15, 3, 6)
    seen = torch.cat([part.pixels[:] for part in (data.training, data.validation, data.test)])
    assert len(seen.flatten(1).unique(dim=0)) == 24


def test_a_streamed_training_and_evaluation_are_those_in_memory(root: Path, tmp_path: Path) -> None:
    data = ShardDataSet(root, PREPARE)
    config = Train(
        epochs=2, batch_size=6, learning_rate=0.1, augment=Augment(flip=True, crop=1, mixup=0.2)
    )
    results = []
    for number, load in enumerate((lambda images: images, in_memory)):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        training, validation = load(data.training), load(data.validation)
        path = tmp_path / f"{number}.safetensors"
        kept, _ = train(network, training, validation, PREPARE, config, seed=0, checkpoint=path)
        right = correct(kept, validation, PREPARE, batch=4)
        prepared = np.concatenate(list(batches(validation, PREPARE, 4)))
        results.append((kept[1].weight, torch.from_numpy(right), torch.from_numpy(prepared)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_small_selections_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, real = [], streamed.decode

    def counted(*arguments: object, **options: object) -> object:
        count.append(1)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(streamed, "decode", counted)
    few = ShardDataSet(root, PREPARE).source.spread(5)
    first = few.pixels[:]
    few.pixels[:]
    assert len(count) == 10
    monkeypatch.setattr(streamed, "CACHED", 5 * 3 * 8 * 8)
    for _ in range(3):
        assert torch.equal(few.pixels[1:3], first[1:3])
    assert len(count) == 15


def test_what_identifies_shards_is_their_content(root: Path) -> None:
    def key() -> object:
        return ShardDataSet(root, PREPARE).key()

    before = key()
    assert before == key()
    assert ShardDataSet(root, PREPARE).test_key() != before
    assert ShardDataSet(root, Preparation((0.5,) * 3, (0.25,) * 3, 4)).key() != before
    measured = Preparation((0.1,) * 3, (0.1,) * 3, 8)
    assert ShardDataSet(root, measured).key() == before  # known only once images are measured
    write_tar(root / "train-1.tar", 10, 15)
    assert key() != before
    images = ShardDataSet(root, PREPARE).source
    assert (
        images.take(torch.tensor([0, 3])).fingerprint
        != images.take(torch.tensor([3, 0])).fingerprint
    )
    assert images.fingerprint == fingerprint_of(images.pixels, images.labels)


def test_reading_ahead_keeps_the_order_and_passes_errors_on(root: Path) -> None:
    pixels = ShardDataSet(root, PREPARE).source.pixels
    assert torch.equal(torch.cat(list(in_turn(pixels, parts_of(24, 7)))), pixels[:])
    assert list(in_turn(pixels, [])) == []
    (root / "train-0.tar").write_bytes(b"x" * (root / "train-0.tar").stat().st_size)
    with pytest.raises(DataError, match=r"train-0.tar, image \d+: cannot read image"):
        list(in_turn(pixels, parts_of(24, 7)))


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for says in ("no such folder of shards", "no shards.*expected train"):
        with pytest.raises(DataError, match=says):
            ShardDataSet(root, PREPARE)
        root.mkdir(exist_ok=True)
    for label, says in (
        (b"", "cannot read shard"),
        (b"three", "cannot read shard"),
        (b"-1", "a negative label"),
        (b"7", "labels and classes differ.*8 classes.*found of 1"),
    ):
        write_tar(root / "train-0.tar", 4, len(says), label)
        with pytest.raises(DataError, match=says):
            ShardDataSet(root, PREPARE)
    (root / "train-0.tar").write_bytes(b"not a tar file")
    with pytest.raises(DataError, match="cannot read shard"):
        ShardDataSet(root, PREPARE)
    (root / "val-0.parquet").touch()
    with pytest.raises(DataError, match="shards of two kinds"):
        ShardDataSet(root, PREPARE)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="no datasets here")
def test_parquet_gives_the_same_images(root: Path) -> None:
    import datasets

    target = root.with_name("parquet")
    target.mkdir()
    names = datasets.ClassLabel(names=["red", "green", "blue"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    for part, start, count in (("train", 0, 24), ("val", 24, 6)):
        rows = [
            {"image": {"bytes": encoded(i, i % 3), "path": None}, "label": i % 3}
            for i in range(start, start + count)
        ]
        datasets.Dataset.from_list(rows, features).to_parquet(target / f"{part}-0.parquet")
    one, other = ShardDataSet(root, PREPARE), ShardDataSet(target, PREPARE)
    assert other.classes == ("red", "green", "blue")
    assert torch.equal(one.training.pixels[:], other.training.pixels[:])
    assert torch.equal(one.test.pixels[:], other.test.pixels[:])
