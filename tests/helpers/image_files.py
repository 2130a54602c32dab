"""One small image file of each kind that is read or refused: seeds of fuzzing.

Run: PYTHONPATH=tests python -m helpers.image_files
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from secateur.errors import DataError
from secateur.imaging import Preparation, read_image

SEEDS = Path(__file__).parents[1] / "fuzzing" / "seeds" / "image"
PIXELS = 2**18
"""Largest width times height while fuzzing: decoding takes at most a few MB."""
_PREPARATIONS = Preparation((0.5,), (0.5,), 8), Preparation((0.5,) * 3, (0.5,) * 3, 8, 9)


def seeds() -> dict[str, bytes]:
    """Name to content of every seed."""
    return {path.name: path.read_bytes() for path in sorted(SEEDS.iterdir())}


def outcome(data: bytes) -> str:
    """What a file comes to: an image, or the kind of error."""
    results = []
    for prepare in _PREPARATIONS:
        try:
            image = read_image(io.BytesIO(data), prepare.channels, limit=PIXELS)
        except DataError as error:
            results.append(f"error: {error.what}")
            continue
        square = prepare.fit(image)
        assert square.shape == (prepare.channels, prepare.side, prepare.side)
        assert square.dtype == np.uint8
        results.append("an image")
    assert results[0] == results[1], results
    return results[0]


def make_seeds() -> None:
    """Write the seeds."""
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    gray, alpha = color.convert("L"), color.copy()
    alpha.putalpha(gray)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    deep = Image.fromarray(rng.integers(0, 65536, (7, 9), dtype=np.uint16))
    for name, image, options in (
        ("gray.png", gray, {}),
        ("alpha.png", alpha, {"exif": exif}),
        ("gray-alpha.png", alpha.convert("LA"), {}),
        ("palette.png", color.quantize(5), {"transparency": 2}),
        ("deep.png", deep, {}),
        ("frames.png", gray, {"save_all": True, "append_images": [gray.rotate(180)]}),
        ("turned.jpg", color, {"exif": exif, "quality": 60}),
        ("progressive.jpg", color, {"progressive": True, "quality": 30}),
        ("cmyk.jpg", color.convert("CMYK"), {"quality": 30}),
        ("lossy.webp", color, {"quality": 20}),
        ("lossless.webp", alpha, {"lossless": True, "exif": exif}),
        ("frames.webp", gray, {"save_all": True, "append_images": [gray.rotate(180)]}),
        ("plain.tif", color, {}),
        ("lzw.tif", color, {"compression": "tiff_lzw"}),
        ("jpeg.tif", color, {"compression": "jpeg"}),
        ("deflate.tif", deep, {"compression": "tiff_adobe_deflate"}),
        ("float.tif", gray.convert("F"), {}),
        ("fax.tif", gray.convert("1"), {"compression": "group4"}),
        ("color.bmp", color, {}),
        ("palette.bmp", color.quantize(5), {}),
        ("color.ppm", color, {}),
        ("deep.pgm", deep.convert("I"), {}),
        ("another.gif", gray, {}),
        ("another.avif", color, {}),
    ):
        image.save(SEEDS / name, **options)


if __name__ == "__main__":
    make_seeds()
