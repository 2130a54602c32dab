"""Images in memory as uint8, made ready for a network batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur import recipe


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Attributes:
        pixels: uint8 tensor of shape (N, C, H, W).
        labels: int64 tensor of shape (N,), each in [0, classes).
        classes: Class names in the order of the labels.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return the images at ``indices``, an int64 tensor, in that order."""
        return Images(self.pixels[indices], self.labels[indices], self.classes)

    def spread(self, count: int) -> Images:
        """Return ``count`` images, evenly spaced so that a set sorted by class is seen whole.

        All of them where ``count`` is 0 or more than there are.
        """
        if not 0 < count < len(self):
            return self
        chosen = torch.linspace(0, len(self) - 1, count).long()
        return self.take(chosen.to(self.labels.device))

    def to(self, device: torch.device) -> Images:
        """Return the same images on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over pixels and labels, as hexadecimal digits."""
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Preparation:
    """What stands between stored pixels and the network: resize, then normalize.

    Attributes:
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        resolution: Side in pixels of the square the network takes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """Turn uint8 (N, C, H, W) into normalized float32 (N, C, R, R), channels last."""
        images = pixels.float().div_(255)
        if images.shape[-2:] != (self.resolution, self.resolution):
            side = (self.resolution, self.resolution)
            images = F.interpolate(images, size=side, mode="bilinear", antialias=True)
        mean = images.new_tensor(self.mean).view(1, -1, 1, 1)
        std = images.new_tensor(self.std).view(1, -1, 1, 1)
        return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, config: recipe.Augment, generator: torch.Generator) -> Tensor:
    """Flip, crop and cut out each image of a batch by its own draw.

    Args:
        pixels: uint8, shape (N, C, H, W).
        config: Which of the three, and how strongly.
        generator: Source of randomness on the CPU, so that every device draws the same.

    Returns:
        uint8, shape (N, C, H, W); a new tensor where anything changed.
    """
    n, _, height, width = pixels.shape
    device = pixels.device
    if config.flip:
        flipped = (torch.rand(n, generator=generator) < 0.5).to(device)
        pixels = torch.where(flipped.view(n, 1, 1, 1), pixels.flip(3), pixels)
    if config.crop:
        shifts = torch.randint(0, 2 * config.crop + 1, (2, n), generator=generator).to(device)
        rows = torch.arange(height, device=device) + shifts[0].unsqueeze(1)
        columns = torch.arange(width, device=device) + shifts[1].unsqueeze(1)
        padded = F.pad(pixels, (config.crop,) * 4)
        image = torch.arange(n, device=device).view(n, 1, 1)
        # Indexing puts the channels last: (N, H, W, C).
        cropped = padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)]
        pixels = cropped.permute(0, 3, 1, 2)
    if config.cutout:
        corner = torch.rand(2, n, generator=generator).to(device)
        top = (corner[0] * (height - config.cutout + 1)).long().view(n, 1, 1, 1)
        left = (corner[1] * (width - config.cutout + 1)).long().view(n, 1, 1, 1)
        row = torch.arange(height, device=device).view(1, 1, height, 1)
        column = torch.arange(width, device=device).view(1, 1, 1, width)
        inside = (row >= top) & (row < top + config.cutout)
        inside = inside & (column >= left) & (column < left + config.cutout)
        pixels = pixels.masked_fill(inside, 0)
    return pixels


def batches(images: Images, prepare: Preparation, size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield all images in order, prepared, ``size`` at a time, as a runtime takes them.

    Yields:
        float32, shape (size, C, R, R), in the order of a C array; the last may be shorter.
    """
    for start in range(0, len(images), size):
        yield prepare(images.pixels[start : start + size]).contiguous().cpu().numpy()
