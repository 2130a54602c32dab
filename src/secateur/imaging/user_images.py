"""Converts a user's images of any kind to squares of 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from secateur.errors import DataError
from secateur.imaging.decode import PIXEL_LIMIT, converted, read_image
from secateur.imaging.preparation import Preparation


def squares(
    images: Any, prepare: Preparation, limit: int = PIXEL_LIMIT
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield each image as uint8 (channels, side, side), resized and cropped by ``prepare``.

    Args:
        images: One image or an iterable of images. An image is a path, a Pillow image, or an array
            or tensor: (H, W) or (H, W, 1) or (1, H, W) for a gray network, (H, W, 3) or (3, H, W)
            for a color one, of uint8, or of floats in [0, 1]. An array with one more axis, and (N,
            H, W) for a gray network, is N images.
        prepare: The image preparation.
        limit: Largest width times height of a file.

    Raises:
        DataError: An image is of another kind, or cannot be read.

    Example:
        >>> prepare = Preparation((0.5,), (0.5,), 8)
        >>> len(list(squares(np.zeros((28, 28, 1), np.uint8), prepare)))
        1
        >>> len(list(squares(np.zeros((5, 28, 28), np.uint8), prepare)))
        5
    """
    if isinstance(images, str | Path):
        yield prepare.fit(read_image(images, prepare.channels, limit=limit))
    elif isinstance(images, Image.Image):
        yield prepare.fit(converted(images, prepare.channels))
    elif isinstance(images, np.ndarray) or hasattr(images, "__array__"):
        yield from map(prepare.fit, _split(_eight_bits(images), prepare.channels))
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        for image in images:
            parts = list(squares(image, prepare, limit))
            if len(parts) != 1:
                raise _unfit(prepare.channels, f"{len(parts)} images inside a list")
            yield parts[0]
    else:
        raise _unfit(prepare.channels, type(images).__name__)


def _eight_bits(images: Any) -> npt.NDArray[np.uint8]:
    """Convert an array or tensor to uint8; floats must be in [0, 1]."""
    values = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise DataError("pixels of another type", expected="uint8 or float", found=values.dtype)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise DataError(
            "pixels out of range",
            expected="floats in [0, 1], neither normalized nor in [0, 255]",
            found=f"[{low:g}, {high:g}]",
        )
    return np.rint(values * 255).astype(np.uint8)


def _split(values: npt.NDArray[np.uint8], channels: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield each image of an array as (H, W), or (H, W, 3)."""
    shape = values.shape
    if values.ndim == 2 and channels == 1:
        values = values[None, ..., None]
    elif values.ndim == 3 and channels in (shape[2], shape[0]):
        values = values[None] if shape[2] == channels else values.transpose(1, 2, 0)[None]
    elif values.ndim == 3 and channels == 1:
        values = values[..., None]
    elif values.ndim == 4 and channels in (shape[1], shape[3]):
        values = values.transpose(0, 2, 3, 1) if shape[1] == channels else values
    else:
        raise _unfit(channels, f"an array of shape {shape}")
    if len(values) and 0 in values.shape:
        raise _unfit(channels, f"an array of shape {shape}")
    for image in values:
        yield np.ascontiguousarray(image[..., 0] if channels == 1 else image)


def _unfit(channels: int, description: str) -> DataError:
    shapes = "(H, W), (N, H, W) or (N, H, W, 1)" if channels == 1 else "(H, W, 3) or (N, H, W, 3)"
    return DataError(
        "images of another kind",
        expected=f"paths, Pillow images, or arrays of shape {shapes}",
        found=description,
    )
