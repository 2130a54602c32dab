"""Images as uint8, in memory or in a memory-mapped file, prepared in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur import recipe
from secateur.imaging import Preparation


class Stored(Protocol):
    """What is behind images that are not in memory: a tensor of a mapped file, or a decoder."""

    shape: torch.Size

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Any, /) -> Tensor: ...


class MappedPixels:
    """Images in a file, uint8 (N, C, S, S), indexed like a tensor and read when indexed.

    Args:
        stored: A tensor whose memory is the mapped file, or what else is indexed like one.
        order: Indices into ``stored``, int64 (N,); None for all in order.
        device: Device of the images that indexing returns.
    """

    def __init__(
        self, stored: Stored, order: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self._stored, self._order, self.device = stored, order, torch.device(device)

    def __len__(self) -> int:
        return len(self._stored if self._order is None else self._order)

    @property
    def identity(self) -> str | None:
        """What stands for the pixels where reading them all takes too long, else None."""
        return None

    @property
    def shape(self) -> torch.Size:
        """(N, C, S, S)."""
        return torch.Size((len(self), *self._stored.shape[1:]))

    def __getitem__(self, chosen: slice | Tensor) -> Tensor:
        """Read images: uint8 on :attr:`device`."""
        if isinstance(chosen, Tensor):
            chosen = chosen.cpu()
        if self._order is not None:
            chosen = self._order[chosen]
        return self._stored[chosen].to(self.device)

    def select(self, indices: Tensor) -> MappedPixels:
        """Select images by ``indices``, in that order, without reading them."""
        indices = indices.cpu()
        order = indices if self._order is None else self._order[indices]
        return type(self)(self._stored, order, self.device)

    def to(self, device: torch.device) -> MappedPixels:
        """The same images with another ``device``, without reading them."""
        return type(self)(self._stored, self._order, device)


Pixels = Tensor | MappedPixels
"""Images indexed by a slice or an int64 tensor."""


@dataclass(frozen=True)
class Images:
    """Images with labels, in memory or in a memory-mapped file.

    Attributes:
        pixels: uint8 of shape (N, C, H, W): a tensor, or :class:`MappedPixels`.
        labels: int64 tensor of shape (N,), each in [0, classes).
        classes: Class names in the order of the labels.
    """

    pixels: Pixels
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return the images at ``indices``, an int64 tensor, in that order."""
        if isinstance(self.pixels, MappedPixels):
            return Images(self.pixels.select(indices), self.labels[indices], self.classes)
        return Images(self.pixels[indices], self.labels[indices], self.classes)

    def spread(self, count: int) -> Images:
        """Return ``count`` evenly spaced images, which cover all classes of a sorted set.

        Returns all images if ``count`` is 0 or too large.
        """
        if not 0 < count < len(self):
            return self
        return self.take(evenly_spaced(len(self), count).to(self.labels.device))

    def to(self, device: torch.device) -> Images:
        """Return the same images on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels and labels, as hexadecimal digits."""
        return fingerprint_of(self.pixels, self.labels)


def evenly_spaced(total: int, count: int) -> Tensor:
    """Indices of ``count`` evenly spaced elements out of ``total``, int64; at most all.

    Example:
        >>> evenly_spaced(10, 4).tolist(), evenly_spaced(2, 4).tolist()
        ([0, 3, 6, 9], [0, 1])
    """
    return torch.linspace(0, total - 1, min(count, total)).long()


def fingerprint_of(pixels: Pixels, labels: Tensor) -> str:
    """SHA-256 over shape, pixels and labels, as hexadecimal digits."""
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    identity = None if isinstance(pixels, Tensor) else pixels.identity
    if identity is not None:
        digest.update(identity.encode())
    for some in chunks(pixels) if identity is None else ():
        digest.update(some.cpu().contiguous().numpy().data)
    digest.update(labels.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def chunks(pixels: Pixels, size: int = 1024) -> Iterator[Tensor]:
    """All images in order, ``size`` at a time: uint8 (n, C, H, W)."""
    return in_turn(pixels, parts_of(len(pixels), size))


def parts_of(count: int, size: int) -> list[slice]:
    """Slices of ``size`` that cover ``count``; the last may be shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def in_turn(pixels: Pixels, parts: Iterable[slice | Tensor]) -> Iterator[Tensor]:
    """Yield some images after others; those that must be read are read one step ahead."""
    if isinstance(pixels, Tensor):
        for chosen in parts:
            yield pixels[chosen]
        return
    with ThreadPoolExecutor(1, "read") as reader:
        ahead: Future[Tensor] | None = None
        for chosen in parts:
            coming = reader.submit(pixels.__getitem__, chosen)
            if ahead is not None:
                yield ahead.result()
            ahead = coming
        if ahead is not None:
            yield ahead.result()


def augment(
    pixels: Tensor,
    config: recipe.Augment,
    generator: torch.Generator,
    batch: int | None = None,
    part: slice = slice(None),
) -> Tensor:
    """Flip, crop and cut out each image of a batch at random.

    Args:
        pixels: uint8, shape (N, C, H, W).
        config: Which of the three, and their strength.
        generator: Random generator on the CPU, so that all devices draw the same.
        batch: Images of the whole batch, for all of which is drawn; None for N.
        part: Which of them ``pixels`` are.

    Returns:
        uint8, shape (N, C, H, W); a new tensor if anything changed.
    """
    n, _, height, width = pixels.shape
    total, device = batch or n, pixels.device
    if config.flip:
        flipped = (torch.rand(total, generator=generator)[part] < 0.5).to(device)
        pixels = torch.where(flipped.view(n, 1, 1, 1), pixels.flip(3), pixels)
    if config.crop:
        drawn = torch.randint(0, 2 * config.crop + 1, (2, total), generator=generator)
        shifts = drawn[:, part].to(device)
        rows = torch.arange(height, device=device) + shifts[0].unsqueeze(1)
        columns = torch.arange(width, device=device) + shifts[1].unsqueeze(1)
        padded = F.pad(pixels, (config.crop,) * 4)
        image = torch.arange(n, device=device).view(n, 1, 1)
        # Indexing puts the channels last: (N, H, W, C).
        cropped = padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)]
        pixels = cropped.permute(0, 3, 1, 2)
    if config.cutout:
        corner = torch.rand(2, total, generator=generator)[:, part].to(device)
        top = (corner[0] * (height - config.cutout + 1)).long().view(n, 1, 1, 1)
        left = (corner[1] * (width - config.cutout + 1)).long().view(n, 1, 1, 1)
        row = torch.arange(height, device=device).view(1, 1, height, 1)
        column = torch.arange(width, device=device).view(1, 1, 1, width)
        inside = (row >= top) & (row < top + config.cutout)
        inside = inside & (column >= left) & (column < left + config.cutout)
        pixels = pixels.masked_fill(inside, 0)
    return pixels


def batches(images: Images, prepare: Preparation, size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield all images in order, prepared, in batches of ``size``.

    Yields:
        float32, shape (size, C, R, R), C-contiguous; the last batch may be smaller.
    """
    for pixels in chunks(images.pixels, size):
        yield prepare(pixels).contiguous().cpu().numpy()
