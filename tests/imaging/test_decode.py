"""Every kind of image file comes out right, or is refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secateur.errors import DataError
from secateur.imaging import read_image, read_size

GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def upright_pixels(file: io.BytesIO, channels: int = 1) -> np.ndarray:
    return np.asarray(read_image(file, channels))


def png16(values: np.ndarray) -> io.BytesIO:
    """A 16-bit PNG, gray (H, W) or RGB (H, W, 3), written byte by byte."""
    height, width = values.shape[:2]
    color = 2 if values.ndim == 3 else 0
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = Image.fromarray(GRADIENT[:, :10].copy())
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = upright_pixels(saved(image, "PNG", exif=exif))
    source = GRADIENT[:, :10]
    expected = {
        1: source, 2: source[:, ::-1], 3: source[::-1, ::-1], 4: source[::-1],
        5: source.T, 6: source[::-1].T, 7: source[::-1, ::-1].T, 8: source.T[::-1],
    }[orientation]  # fmt: skip
    assert np.array_equal(shown, expected)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    gray = upright_pixels(png16(values))
    assert np.array_equal(gray, np.round(values / 257).astype(np.uint8))
    color = upright_pixels(png16(np.stack([values, values[::-1], values.T], axis=2)), 3)
    assert np.abs(color[..., 0] - values / 257).max() <= 1
    tiff = upright_pixels(saved(Image.fromarray(values), "TIFF"))
    assert np.array_equal(tiff, gray)


def test_alpha_is_composited_onto_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    shown = upright_pixels(saved(Image.fromarray(pixels)), 3)
    assert shown[0, :, 0].tolist() == [255, 127, 0]
    gray = Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 0)])
    assert upright_pixels(saved(gray)).tolist() == [[255]]


def test_a_palette_with_a_transparent_entry() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert upright_pixels(saved(image), 3).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    shown = upright_pixels(saved(image, transparency=1), 3)
    assert shown.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_bilevel_and_gray() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    shown = upright_pixels(saved(red.convert("CMYK"), "TIFF"), 3)
    assert np.abs(shown.astype(int) - (255, 0, 0)).max() <= 2
    shown = upright_pixels(saved(red.convert("CMYK"), "JPEG", quality=100), 3)
    assert np.abs(shown.astype(int) - (255, 0, 0)).max() <= 6
    assert upright_pixels(saved(Image.new("1", (2, 2), 1))).tolist() == [[255, 255]] * 2
    assert upright_pixels(saved(red)).tolist() == [[76] * 8] * 8
    assert upright_pixels(saved(Image.new("L", (1, 1), 7)), 3).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize(
    ("mode", "found"), [("F", "float pixels"), ("I", "32-bit integer"), ("LAB", "CIELAB")]
)
def test_pixels_without_an_agreed_range_are_refused(mode: str, found: str) -> None:
    with pytest.raises(DataError, match=rf"kind that is not read.*found {found}.*8-bit RGB"):
        read_image(saved(Image.new(mode, (4, 4)), "TIFF"), 3)


def test_several_frames_are_refused() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (0, 9)]
    for kind in ("TIFF", "PNG", "WEBP"):
        file = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=r"several frames.*found 2 frames"):
            read_image(file, 1)


@pytest.mark.parametrize("kind", ["GIF", "ICO", "JPEG2000"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match=r"cannot read image.*JPEG, PNG.*another format"):
        read_image(saved(Image.new("L", (16, 16)), kind), 1)


def test_the_limit_of_pixels_is_checked_before_decoding() -> None:
    file = saved(Image.new("1", (9000, 9000)))
    assert read_image(file, 1).size == (9000, 9000)
    file.seek(0)
    with pytest.raises(DataError, match=r"image too large.*at most 1,000 pixels.*9,000 x 9,000"):
        read_image(file, 1, limit=1000)
    header = struct.pack(">IIBBBBB", 2**30, 2**30, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    bomb += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 0) + b"IDAT"
    with pytest.raises(DataError, match="image too large"):
        read_image(io.BytesIO(bomb), 1)


def test_the_size_is_read_from_the_header_alone(tmp_path: Path) -> None:
    cut = saved(Image.new("L", (300, 200))).getvalue()[:60]
    assert read_size(io.BytesIO(cut)) == (300, 200)
    for content, error in ((b"no image", "cannot read image"), (cut, "image too large")):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(DataError, match=rf"{error} \(.*x\.png\)"):
            read_size(tmp_path / "x.png", limit=1000)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    whole = saved(Image.fromarray(GRADIENT)).getvalue()
    for name, content in {"empty": b"", "text": b"no image", "cut": whole[:-60]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"cannot read image \(.*{name}\)"):
            read_image(tmp_path / name, 1)
    with pytest.raises(DataError, match=r"no such image file \(.*none\)"):
        read_image(tmp_path / "none", 1)
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(DataError, match="expected a regular file"):
            read_image(tmp_path / name, 1)
