"""Splits, label noise and normalization of a data set, all determined by seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.data.images import Images, chunks
from secateur.errors import DataError


def split(
    labels: Tensor, fraction: float, seed: int, classes: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Split indices in two, stratified by class.

    Args:
        labels: int64, shape (N,).
        fraction: Fraction of each class in the second part, rounded, at least one image.
        seed: Seed of the draw.
        classes: Class names for error messages, which name the label otherwise.

    Returns:
        Two sorted, disjoint int64 tensors of indices: the remaining and the drawn images.

    Raises:
        DataError: A class has fewer than two images.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, drawn = [], []
    for label in labels.unique().tolist():
        members = torch.where(labels == label)[0]
        if len(members) < 2:
            raise DataError(
                "too few images to split",
                where=f"class {classes[label] if classes else label}",
                expected="at least 2 images",
                found=len(members),
            )
        order = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        drawn.append(order[:count])
        kept.append(order[count:])
    return torch.cat(kept).sort().values, torch.cat(drawn).sort().values


def draw(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw images, each class in proportion to its size.

    This is the method of Webster (Sainte-Lague): a class of n among N images gets n * count / N,
    within 1/2 + classes * n / (2 N), which is 1 for classes of equal size. Draws are nested: the
    images of a smaller ``count`` are among those of a larger one. No nested method is always within
    1 (Balinski and Young, "Fair Representation", 2001).

    Args:
        labels: int64, shape (N,).
        count: Number of images, at least 1.
        seed: Seed of the draw.

    Returns:
        Sorted int64 tensor of ``count`` distinct indices into ``labels``.

    Raises:
        DataError: There are fewer images.
    """
    if count > len(labels):
        raise DataError(
            "too few training images",
            where="data.images",
            expected=f"at most {len(labels)}",
            found=count,
            remedy="lower data.images or data.validation",
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    # Each image gets a position in (0, 1) within its class; the lowest positions are drawn, so that
    # classes are drawn at the same rate and the total is exact.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    ranked = order[place[order].argsort(stable=True)]
    return ranked[:count].sort().values


def mislabel(labels: Tensor, fraction: float, classes: int, seed: int) -> Tensor:
    """Replace a fraction of labels by another class, each other class being equally likely.

    With the same seed, the images mislabeled by a smaller fraction are among those of a larger one.

    Args:
        labels: int64, shape (N,), each in [0, classes).
        fraction: In [0, 1); ``round(fraction * N)`` labels change.
        classes: Number of classes, at least 2 if any label changes.
        seed: Seed of the draw.

    Returns:
        int64, shape (N,); a new tensor.

    Raises:
        DataError: There is only one class.
    """
    count = round(fraction * len(labels))
    if count and classes < 2:
        raise DataError(
            "no other class to mislabel as",
            where="data.label_noise",
            expected="at least 2 classes",
            found=classes,
            remedy="set data.label_noise = 0",
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    noisy = labels.clone()
    if count:
        shift = torch.randint(1, classes, (len(labels),), generator=generator)[:count]
        noisy[chosen] = (labels[chosen] + shift) % classes
    return noisy


NORMALIZED = 20_000
"""Images that the mean and standard deviation of a streamed set are measured on."""


def normalization(images: Images, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in units of [0, 1].

    ``half`` gives 0.5 and 0.5, an input range of [-1, 1]; ``dataset`` measures ``images``, or of
    streamed images :data:`NORMALIZED`, evenly spaced.
    """
    if not isinstance(images.pixels, Tensor) and images.pixels.identity is not None:
        images = images.spread(NORMALIZED)
    channels = images.pixels.shape[1]
    if kind == "half":
        return (0.5,) * channels, (0.5,) * channels
    # A histogram is exact, independent of the device, and needs no float copy of the images.
    counts = torch.zeros(channels, 256, dtype=torch.float64, device=images.labels.device)
    for some in chunks(images.pixels):
        values = some.transpose(0, 1).reshape(channels, -1)
        counts += torch.stack([torch.bincount(row.long(), minlength=256) for row in values])
    level = torch.arange(256, dtype=torch.float64, device=counts.device) / 255
    mean = (counts * level).sum(1) / counts.sum(1)
    variance = (counts * (level - mean.unsqueeze(1)) ** 2).sum(1) / counts.sum(1)
    std = variance.sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
