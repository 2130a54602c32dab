"""What a user may call an image, how many images it is, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.errors import DataError
from secateur.imaging import Preparation, squares

GRAY, COLOR = Preparation((0.5,), (0.5,), 4), Preparation((0.5,) * 3, (0.5,) * 3, 4)


@pytest.mark.parametrize(
    ("prepare", "shape", "count"),
    [
        (GRAY, (28, 28), 1),
        (GRAY, (28, 28, 1), 1),
        (GRAY, (1, 28, 28), 1),
        (GRAY, (5, 28, 28), 5),
        (GRAY, (5, 28, 28, 1), 5),
        (GRAY, (5, 1, 28, 28), 5),
        (GRAY, (0, 28, 28), 0),
        (COLOR, (28, 28, 3), 1),
        (COLOR, (3, 28, 28), 1),
        (COLOR, (5, 28, 28, 3), 5),
        (COLOR, (5, 3, 28, 28), 5),
    ],
)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_number_of_images_follows_from_the_shape(
    prepare: Preparation, shape: tuple[int, ...], count: int, kind: Any
) -> None:
    found = list(squares(kind(np.full(shape, 9, np.uint8)), prepare))
    assert len(found) == count
    assert all(image.shape == (prepare.channels, 4, 4) and (image == 9).all() for image in found)


@pytest.mark.parametrize(
    ("prepare", "images"),
    [
        (GRAY, np.zeros((2, 28, 28, 3), np.uint8)),
        (COLOR, np.zeros((28, 28), np.uint8)),
        (COLOR, np.zeros((2, 28, 28, 1), np.uint8)),
        (COLOR, np.zeros((1, 2, 28, 28, 3), np.uint8)),
        (COLOR, np.zeros((2, 0, 28, 3), np.uint8)),
        (GRAY, 7),
        (GRAY, None),
        (GRAY, b"bytes"),
        (GRAY, {"a": 1}),
        (GRAY, [np.zeros((5, 28, 28), np.uint8)]),
    ],
)
def test_what_is_no_image_is_refused(prepare: Preparation, images: Any) -> None:
    with pytest.raises(DataError, match=r"images of another kind.*expected paths.*found"):
        list(squares(images, prepare))


@pytest.mark.parametrize("wrong", [-0.1, 1.5, 255.0, float("nan"), float("inf")])
def test_floats_out_of_range_are_refused(wrong: float) -> None:
    pixels = np.full((8, 8), 0.5, np.float32)
    (image,) = squares(pixels, GRAY)
    assert (image == 128).all()
    pixels[3, 3] = wrong
    with pytest.raises(DataError, match=r"pixels out of range.*floats in \[0, 1\]"):
        list(squares(pixels, GRAY))
    with pytest.raises(DataError, match=r"pixels of another type.*found int64"):
        list(squares(np.zeros((8, 8), np.int64), GRAY))


def test_paths_and_pillow_images_alone_in_lists_and_in_generators(tmp_path: Path) -> None:
    image = Image.new("RGBA", (9, 5), (10, 20, 30, 255))
    image.save(tmp_path / "x.png")
    expected = next(squares(np.asarray(image)[..., :3], COLOR))
    path = tmp_path / "x.png"
    for images in (path, str(path), image, [path, image], (p for p in (path, str(path)))):
        assert all(np.array_equal(square, expected) for square in squares(images, COLOR))
    with pytest.raises(DataError, match="image too large"):
        list(squares(path, COLOR, limit=44))
