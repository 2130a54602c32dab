"""Decodes an image file to upright 8-bit gray or RGB, or raises an error that names it.

| in the file | result |
|---|---|
| EXIF orientation | the image is rotated and mirrored accordingly |
| 16 bits per channel | 8 bits: 65535 becomes 255 |
| alpha, transparent palette entries | composited onto white |
| palette, bilevel, CMYK, YCbCr | converted by Pillow |
| gray where RGB is wanted, RGB where gray is wanted | converted by Pillow (ITU-R 601-2 luma) |
| multi-picture JPEG (MPO) | the first picture |
| float or 32-bit pixels, CIELAB, several frames, another format | refused |

Color profiles are ignored, as in torchvision and timm.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from secateur.errors import DataError

PIXEL_LIMIT = 89_478_485
"""Default limit on the pixels of an image, as in Pillow: 1/4 GiB of RGB."""

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""Suffixes of image files in folders, in lower case."""

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Names of the supported formats in Pillow."""

_lock = threading.Lock()


def read_image(
    source: str | Path | IO[bytes], channels: int, *, limit: int = PIXEL_LIMIT
) -> Image.Image:
    """Read one image file.

    Args:
        source: Path, or a binary file object.
        channels: 1 for gray, 3 for RGB.
        limit: Largest width times height; the header is checked before any pixel is decoded.

    Returns:
        Upright image of mode ``L`` or ``RGB``, loaded.

    Raises:
        DataError: The file is missing, damaged, too large, or of an unsupported kind.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(file, "PNG")
        >>> read_image(file, 3).getpixel((0, 0))  # fully transparent: white shows
        (255, 255, 255)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata, which does not matter
        return decode(source, channels, limit=limit)


def decode(
    source: str | Path | IO[bytes], channels: int, *, limit: int = PIXEL_LIMIT
) -> Image.Image:
    """Read one image file as :func:`read_image` does, without changing warning filters.

    For use in threads: warning filters are global to the process, so that the caller sets them
    before starting threads.
    """
    with _named_errors(source) as where, _open(source) as image:
        _check_header(image, where, limit)
        return converted(image, channels, where)


def read_size(source: str | Path | IO[bytes], *, limit: int = PIXEL_LIMIT) -> tuple[int, int]:
    """Read the width and height of an image file from its header; no pixel is decoded.

    Args:
        source: Path, or a binary file object.
        limit: Largest width times height.

    Returns:
        Width and height as stored, before an EXIF orientation is applied.

    Raises:
        DataError: As :func:`read_image`.
    """
    with warnings.catch_warnings(), _named_errors(source) as where, _open(source) as image:
        warnings.simplefilter("ignore")
        _check_header(image, where, limit)
        return image.size


@contextmanager
def _named_errors(source: str | Path | IO[bytes]) -> Iterator[object]:
    """Turn errors of reading a file into a :class:`DataError` that names it; yield its name."""
    where = source if isinstance(source, str | Path) else "image"
    try:
        yield where
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError("no such image file", where=where) from error
    except UnidentifiedImageError as error:
        raise DataError(
            "cannot read image",
            where=where,
            expected="JPEG, PNG, WebP, BMP, TIFF or PPM",
            found="another format, or a damaged file",
        ) from error
    except Exception as error:  # Pillow's plugins may raise anything
        message = f"{type(error).__name__}: {error}"
        raise DataError("cannot read image", where=where, found=message) from error


def _open(source: str | Path | IO[bytes]) -> Image.Image:
    """Open without Pillow's limit on pixels, which is global to the process."""
    if isinstance(source, str | Path) and not Path(source).is_file() and Path(source).exists():
        raise DataError("cannot read image", where=source, expected="a regular file")
    with _lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_header(image: Image.Image, where: object, limit: int) -> None:
    width, height = image.size
    if width * height > limit:
        raise DataError(
            "image too large",
            where=where,
            expected=f"at most {limit:,} pixels",
            found=f"{width:,} x {height:,} = {width * height:,} pixels",
            remedy="if you trust the file, raise the pixel limit (data.max_pixels in a recipe)",
        )
    frames = getattr(image, "n_frames", 1)
    if frames != 1 and image.format != "MPO":
        raise DataError(
            "image of several frames", where=where, expected="one frame", found=f"{frames} frames"
        )


def converted(image: Image.Image, channels: int, where: object = "image") -> Image.Image:
    """Rotate an opened image upright and convert it to mode ``L`` or ``RGB``.

    Args:
        image: Image of any mode.
        channels: 1 for gray, 3 for RGB.
        where: Name for error messages.

    Raises:
        DataError: The image is of an unsupported kind.
    """
    kind = image.format
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode.startswith("I"):
        image = _eight_bits(image, kind, where)
    elif mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = _on_white(image)
    elif mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise DataError(
            "image of a kind that is not read",
            where=where,
            expected="8 or 16 bits per channel: bilevel, gray, palette, RGB, CMYK or YCbCr",
            found=_KINDS.get(mode, f"mode {mode}"),
            remedy="convert it to 8-bit RGB or gray",
        )
    return image.convert("L" if channels == 1 else "RGB")


_KINDS = {"F": "float pixels", "LAB": "CIELAB", "HSV": "HSV"}


def _eight_bits(image: Image.Image, kind: str | None, where: object) -> Image.Image:
    """Scale 16-bit gray to 8 bits, rounding to nearest: 65535 is 257 times 255."""
    values = np.asarray(image).astype(np.int64)
    # Some versions of Pillow open 16-bit PNG and PPM as mode I; other 32-bit integers have no
    # standard range.
    if image.mode == "I" and (
        kind not in ("PNG", "PPM") or values.min() < 0 or values.max() > 65535
    ):
        raise DataError(
            "image of a kind that is not read",
            where=where,
            expected="8 or 16 bits per channel",
            found="32-bit integer pixels",
            remedy="convert it to 8-bit RGB or gray",
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    colored = image.convert("RGBA")
    white = Image.new("RGBA", colored.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colored).convert("RGB")
