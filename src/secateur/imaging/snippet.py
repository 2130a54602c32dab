"""An image preparation as Python code and in words, to run a network without Secateur."""

from __future__ import annotations

from string import Template

from secateur.imaging.preparation import Preparation

_SOURCE = Template('''\
import numpy as np
from PIL import Image, ImageOps


def prepare(path):
    """Read an image file as float32 (1, $channels, $resolution, $resolution)."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray(((np.asarray(image, np.int64) + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("$mode")
$resize
    image = image.resize(size, Image.Resampling.$filter)
    left, top = (round((length - $resolution) / 2) for length in size)
    image = image.crop((left, top, left + $resolution, top + $resolution))
    pixels = np.asarray(image, np.float32).reshape($resolution, $resolution, $channels)$flip / 255
    pixels = (pixels - np.float32($mean)) / np.float32($std)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
''')

_SHORTER_SIDE = """\
    shorter = min(image.size)
    size = $side * image.width // shorter, $side * image.height // shorter"""

_BOTH_SIDES = "    size = $side, $side"


def python_source(prepare: Preparation) -> str:
    """Return a module that defines ``prepare(path)`` with NumPy and Pillow alone.

    Its result equals Secateur's within one level of 255.

    Args:
        prepare: The image preparation.
    """
    resize = Template(_BOTH_SIDES if prepare.squash else _SHORTER_SIDE)
    return _SOURCE.substitute(
        channels=prepare.channels,
        resolution=prepare.resolution,
        mode="L" if prepare.channels == 1 else "RGB",
        resize=resize.substitute(side=prepare.side),
        filter=prepare.interpolation.upper(),
        flip="[..., ::-1]" if prepare.order == "BGR" and prepare.channels == 3 else "",
        mean=list(prepare.mean),
        std=list(prepare.std),
    )


def in_words(prepare: Preparation) -> str:
    """Return the steps in one sentence, for implementations in other languages.

    Example:
        >>> print(in_words(Preparation((0.5,), (0.25,), 28)))
        Turn the image upright (EXIF), convert it to gray, resize its shorter side to 28 pixels \
(bilinear, antialiased), crop 28x28 around the center, divide by 255, subtract the mean [0.5], \
divide by the standard deviation [0.25].
    """
    side, resolution = prepare.side, prepare.resolution
    resize = f"it to {side}x{side}" if prepare.squash else f"its shorter side to {side}"
    return (
        "Turn the image upright (EXIF), convert it to "
        f"{'gray' if prepare.channels == 1 else prepare.order}, resize {resize} pixels "
        f"({prepare.interpolation}, antialiased), crop {resolution}x{resolution} around the "
        f"center, divide by 255, subtract the mean {list(prepare.mean)}, "
        f"divide by the standard deviation {list(prepare.std)}."
    )
