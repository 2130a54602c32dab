"""Folders of images: parts, classes, what is skipped, what is refused, and sets on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.data import MappedPixels, load_folder, normalization, pixel_store
from secateur.errors import DataError
from secateur.imaging import Preparation

PREPARE = Preparation((0.5,) * 3, (0.25,) * 3, 8)
SIZES = ((8, 8), (12, 12), (40, 9), (9, 31))


def write(
    folder: Path, count: int, level: int = 0, sizes: Iterable[tuple[int, int]] = SIZES
) -> None:
    """Write ``count`` images of mixed sizes and formats, each of its own brightness."""
    folder.mkdir(parents=True)
    sizes = list(sizes)
    for index in range(count):
        image = Image.new("RGB", sizes[index % len(sizes)], (level + 5 * index,) * 3)
        image.save(folder / f"{index:03}.{('png', 'jpg', 'bmp')[index % 3]}")


def make(root: Path, parts: Iterable[str], classes: str = "abc", count: int = 5) -> Path:
    for part in parts:
        for number, name in enumerate(classes):
            write(root / part / name, count, 60 * number)
    return root


def test_three_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = load_folder(make(tmp_path, ("train", "valid", "test")), PREPARE)
    assert folder.classes == ("a", "b", "c")
    for images in (folder.training, folder.validation, folder.test):
        assert images.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        assert images.pixels[:].shape == (15, 3, 8, 8)
        assert images.pixels[:][:, 0].float().mean((1, 2)).argsort().tolist() == list(range(15))
    assert folder.report[0] == "train: 15 images of 3 classes, 5 to 5 each"


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        (("train", "test"), (12, 3, 15)),
        (("train", "val"), (12, 3, 15)),
        (("",), (9, 3, 3)),
    ],
)
def test_missing_parts_are_drawn_by_seed(
    tmp_path: Path, parts: tuple[str, ...], sizes: tuple[int, int, int]
) -> None:
    make(tmp_path, parts)
    folder = load_folder(tmp_path, PREPARE)
    images = (folder.training, folder.validation, folder.test)
    assert tuple(map(len, images)) == sizes
    assert all(len(part.labels.unique()) == 3 for part in images)
    seen = [tuple(row.tolist()) for part in images for row in part.pixels[:].flatten(1)]
    if parts == ("",):
        assert len(set(seen)) == 15
    again = load_folder(tmp_path, PREPARE)
    assert torch.equal(again.training.pixels[:], folder.training.pixels[:])
    other = load_folder(tmp_path, PREPARE, seed=1)
    assert not torch.equal(other.validation.pixels[:], folder.validation.pixels[:])


@pytest.mark.parametrize("first", [(1, 1), (12, 12), (4000, 4000)])
def test_the_first_file_decides_nothing(tmp_path: Path, first: tuple[int, int]) -> None:
    make(tmp_path, ("train", "test"))
    before = load_folder(tmp_path, PREPARE).source
    Image.new("RGB", first, (0, 0, 0)).save(tmp_path / "train" / "a" / "000.png")
    after = load_folder(tmp_path, PREPARE).source
    assert torch.equal(after.pixels[:], before.pixels[:])


def test_a_class_that_differs_is_named(tmp_path: Path) -> None:
    make(tmp_path, ("train", "val", "test"))
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "B")
    with pytest.raises(DataError, match=r"test\).*missing or empty: 'b'; not in the .*: 'B'"):
        load_folder(tmp_path, PREPARE)
    shutil.rmtree(tmp_path / "test" / "B")
    with pytest.raises(DataError, match=r"classes differ.*/test\).*missing or empty: 'b'"):
        load_folder(tmp_path, PREPARE)
    (tmp_path / "test" / "b").mkdir()
    with pytest.raises(DataError, match=r"classes differ.*/test\).*missing or empty: 'b'"):
        load_folder(tmp_path, PREPARE)
    shutil.rmtree(tmp_path / "test")
    write(tmp_path / "val" / "d", 1)
    with pytest.raises(DataError, match=r"classes differ.*/val\).*not in the training part: 'd'"):
        load_folder(tmp_path, PREPARE)


def test_what_cannot_be_split_or_is_empty_is_named(tmp_path: Path) -> None:
    make(tmp_path, ("train", "test"))
    write(tmp_path / "train" / "one", 1)
    write(tmp_path / "test" / "one", 1)
    with pytest.raises(DataError, match=r"too few images.*class one.*at least 2 images.*found 1"):
        load_folder(tmp_path, PREPARE)
    (tmp_path / "train" / "one" / "000.png").unlink()
    with pytest.raises(DataError, match=r"class without images \(.*train/one\)"):
        load_folder(tmp_path, PREPARE)
    for root, error in {
        tmp_path / "none": "no such image folder",
        tmp_path / "test" / "a": "no classes",
    }.items():
        with pytest.raises(DataError, match=error):
            load_folder(root, PREPARE)
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no test images.*test/CLASS.*found train/ alone"):
        load_folder(tmp_path, PREPARE)
    (tmp_path / "elsewhere").rename(tmp_path / "test")
    (tmp_path / "train").rename(tmp_path / "val")
    with pytest.raises(DataError, match=r"no training images.*found"):
        load_folder(tmp_path, PREPARE)
    shutil.copytree(tmp_path / "val", tmp_path / "train")
    (tmp_path / "validation").mkdir()
    with pytest.raises(DataError, match=r"two folders for one part.*val and validation"):
        load_folder(tmp_path, PREPARE)


def test_what_is_skipped_is_counted(tmp_path: Path) -> None:
    make(tmp_path, ("train", "test"))
    inside = tmp_path / "train" / "a"
    for name in ("x.gif", "y.GIF", "z.avif", "notes.txt", ".hidden.png", "README"):
        (inside / name).write_bytes(b"")
    for hidden in (tmp_path / ".cache", tmp_path / "__MACOSX", inside / ".thumbnails"):
        write(hidden, 1)
    write(inside / "more", 2)
    (tmp_path / "train" / "stray.png").write_bytes(b"")
    os.mkfifo(inside / "fifo.png")
    (inside / "link").symlink_to(tmp_path)
    folder = load_folder(tmp_path, PREPARE)
    assert folder.listing.counts("train") == [7, 5, 5]
    assert folder.listing.skipped == {
        ".avif file": 1,
        ".gif file": 2,
        ".txt file": 1,
        "file without a suffix": 1,
        "hidden file": 1,
        "hidden folder": 3,
        "image outside a class folder": 1,
        "link to a folder": 1,
        "neither a file nor a folder": 1,
    }
    assert "skipped: 1 x .avif file, 2 x .gif file" in folder.report[-1]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, ("train", "test"))
    image = tmp_path / "train" / "a" / "000.png"
    image.rename(image.parent / os.fsdecode(b"\xff.png"))
    (image.parent / os.fsdecode(b"notes.\xff")).write_bytes(b"")
    assert len(load_folder(tmp_path, PREPARE).source) == 15
    (tmp_path / "train" / "a").rename(tmp_path / "train" / os.fsdecode(b"\xff\n"))
    with pytest.raises(DataError, match=r"class name that is not UTF-8.*\\xff"):
        load_folder(tmp_path, PREPARE)


def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    make(tmp_path, ("train", "test"))
    (tmp_path / "train" / "b" / "003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read image.*train/b/003\.png"):
        load_folder(tmp_path, PREPARE).source  # noqa: B018
    folder = load_folder(tmp_path, PREPARE, max_pixels=100)
    with pytest.raises(DataError, match=r"image too large.*test/a/001\.jpg.*at most 100"):
        folder.test  # noqa: B018


# ---- more images than fit


def mapped(root: Path, tmp_path: Path, **options: object) -> object:
    cache = tmp_path / "cache"
    return load_folder(root, PREPARE, memory=0, cache=cache, **options)  # type: ignore[arg-type]


def test_images_on_disk_are_the_same_images(tmp_path: Path) -> None:
    root = make(tmp_path / "images", ("train", "test"), count=9)
    memory, disk = load_folder(root, PREPARE), mapped(root, tmp_path)
    for part in ("training", "validation", "test", "source"):
        inside, outside = getattr(memory, part), getattr(disk, part)
        assert isinstance(outside.pixels, MappedPixels)
        assert outside.pixels.shape == inside.pixels.shape
        assert outside.fingerprint == inside.fingerprint
        chosen = torch.tensor([3, 0, 2])
        for some, other in (
            (outside.take(chosen), inside.take(chosen)),
            (outside.spread(4), inside.spread(4)),
            (outside.spread(4).take(chosen), inside.spread(4).take(chosen)),
        ):
            assert torch.equal(some.pixels[:], other.pixels[:])
            assert torch.equal(some.labels, other.labels)
        assert torch.equal(outside.pixels[chosen], inside.pixels[chosen])
        assert torch.equal(outside.pixels[1:3], inside.pixels[1:3])
        assert outside.to(torch.device("meta")).pixels[1:3].device.type == "meta"
    assert normalization(disk.training, "dataset") == normalization(memory.training, "dataset")


def test_changes_in_memory_stay_out_of_decoded_files(tmp_path: Path) -> None:
    root = make(tmp_path / "images", ("train", "test"))
    images = mapped(root, tmp_path).source
    before = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    images.pixels[:].add_(1)
    assert {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == before


def test_another_normalization_needs_no_decoding(tmp_path: Path) -> None:
    root, cache = make(tmp_path / "images", ("train", "test")), tmp_path / "cache"
    for mean in (0.5, 0.1):
        prepare = replace(PREPARE, mean=(mean,) * 3)
        load_folder(root, prepare, memory=0, cache=cache).source  # noqa: B018
    assert len(list(cache.glob("*.u8"))) == 1


def test_files_are_decoded_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "images", ("train", "test"))
    before = mapped(root, tmp_path).source
    decoded = []
    fit = Preparation.fit
    monkeypatch.setattr(
        pixel_store.Preparation, "fit", lambda self, image: decoded.append(1) or fit(self, image)
    )
    again = mapped(root, tmp_path, seed=3).source
    assert not decoded
    assert again.fingerprint == before.fingerprint
    changed = root / "train" / "a" / "000.png"
    Image.new("RGB", (8, 8), (255, 255, 255)).save(changed)
    after = mapped(root, tmp_path).source
    assert len(decoded) == 15
    assert after.fingerprint != before.fingerprint
    assert int(after.pixels[:1].min()) == 255
    for file in (tmp_path / "cache").glob("*.u8"):
        file.unlink()  # its mapping stays
        file.write_bytes(b"cut")
    assert torch.equal(mapped(root, tmp_path).source.pixels[:], after.pixels[:])
    assert len(decoded) == 30
    assert not [f for f in (tmp_path / "cache").iterdir() if f.suffix not in (".u8", ".json")]


@pytest.mark.parametrize("damage", ["pixel", "cut", "longer", "fingerprint", "no JSON"])
def test_a_damaged_cache_is_made_again_and_that_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    root = make(tmp_path / "images", ("train", "test"))
    before = mapped(root, tmp_path).source  # type: ignore[attr-defined]
    expected, fingerprint = before.pixels[:].clone(), before.fingerprint
    (stored,), (about,) = ((tmp_path / "cache").glob(pattern) for pattern in ("*.u8", "*.json"))
    content = stored.read_bytes()
    if damage == "pixel":
        stored.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])
    elif damage in ("cut", "longer"):
        stored.unlink()  # its mapping stays
        stored.write_bytes(content[:-1] if damage == "cut" else content + b"more")
    else:
        about.write_text('{"fingerprint": "0"}' if damage == "fingerprint" else "[" * 10_000)
    capsys.readouterr()
    after = mapped(root, tmp_path).source  # type: ignore[attr-defined]
    assert "decodedagain" in "".join(capsys.readouterr().err.split())
    assert torch.equal(after.pixels[:], expected)
    assert after.fingerprint == fingerprint
    (stored,) = (tmp_path / "cache").glob("*.u8")
    assert stored.stat().st_size == len(content)
    mapped(root, tmp_path).source  # type: ignore[attr-defined]  # noqa: B018
    assert "decodedagain" not in "".join(capsys.readouterr().err.split())


def test_a_failed_decoding_leaves_no_file(tmp_path: Path) -> None:
    root = make(tmp_path / "images", ("train", "test"))
    (root / "train" / "c" / "004.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot read image"):
        mapped(root, tmp_path).source  # type: ignore[attr-defined]  # noqa: B018
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_known_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "images", ("train", "test"))
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(pixel_store.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"no room for decoded images.*XDG_CACHE_HOME"):
        mapped(root, tmp_path).source  # type: ignore[attr-defined]  # noqa: B018


def test_pixels_on_disk_go_through_the_preparation(tmp_path: Path) -> None:
    root = make(tmp_path / "images", ("train", "test"))
    source = mapped(root, tmp_path).source  # type: ignore[attr-defined]
    assert PREPARE(source.pixels[:4]).shape == (4, 3, 8, 8)
    assert np.isfinite(PREPARE(source.pixels[:4]).numpy()).all()
