"""Images for quantization in several forms, prepared lazily in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.data import Images, Preparation
from secateur.data.images import Pixels
from secateur.errors import DataError

ImageSource = Tensor | npt.NDArray | Images
"""float32 (N, C, H, W), prepared; or uint8 (N, C, H, W), (N, H, W, C) or (N, H, W); or Images."""


@dataclass(frozen=True, eq=False)
class CalibrationImages:
    """Images that are prepared when they are indexed.

    Attributes:
        pixels: float32 (N, C, H, W), prepared; or uint8 (N, C, S, S).
        prepare: Maps uint8 pixels to the network's input; None if already prepared.
        labels: int64 (N,), or None.
        classes: Class names, if known.
    """

    pixels: Pixels
    prepare: Preparation | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice | Tensor) -> Tensor:
        """Prepare some images: float32 (n, C, H, W), contiguous, on the CPU."""
        pixels = self.pixels[part].cpu()
        return (pixels if self.prepare is None else self.prepare(pixels)).contiguous()

    def spread(self, count: int) -> Tensor:
        """Indices of ``count`` evenly spaced images, int64 (n,); of all if it is 0."""
        count = min(count, len(self)) or len(self)
        return torch.linspace(0, len(self) - 1, count).long()


def calibration_images(
    images: ImageSource,
    preparation: Preparation | None,
    labels: Tensor | npt.NDArray | Sequence[int] | None = None,
) -> CalibrationImages:
    """Check images and convert them to (N, C, H, W).

    Args:
        images: See :data:`ImageSource`.
        preparation: Preparation of uint8 images; other images are already prepared.
        labels: Class of each image; ``Images`` have their own.

    Raises:
        DataError: Type or shape is not supported, or preparation or labels are missing.
    """
    classes: tuple[str, ...] | None = None
    if isinstance(images, Images):
        pixels, classes = images.pixels, images.classes
        labels = images.labels if labels is None else labels
        integers = True
    else:
        pixels = _four_sides(torch.as_tensor(images))
        integers = pixels.dtype == torch.uint8
    if len(pixels) == 0:
        raise DataError("no images to quantize with", where="images", remedy="give at least one")
    if integers and preparation is None:
        raise DataError(
            "images that are not prepared",
            where="images",
            expected="float32, or uint8 together with mean and std",
            found="uint8 without mean and std",
            remedy="give mean= and std=, in units of [0, 1]",
        )
    targets = None if labels is None else torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    if targets is not None and targets.shape != (len(pixels),):
        raise DataError(
            "labels do not match the images",
            where="labels",
            expected=f"shape ({len(pixels)},)",
            found=f"shape {tuple(targets.shape)}",
        )
    return CalibrationImages(pixels, preparation if integers else None, targets, classes)


def _four_sides(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        if images.ndim == 3:
            return images[:, None]
        if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
            return images.permute(0, 3, 1, 2)
    if images.dtype not in (torch.float32, torch.uint8) or images.ndim != 4:
        raise DataError(
            "images of another kind",
            where="images",
            expected="float32 (N, C, H, W), or uint8 (N, C, H, W), (N, H, W, C) or (N, H, W)",
            found=f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}",
        )
    return images
