"""Images in memory as uint8, split once by seed, and made ready for a network batch by batch."""

from secateur.data.choose import draw, mislabel, normalization, split
from secateur.data.images import Images, Preparation, augment, batches
from secateur.data.sources import CLASSES, load

__all__ = [
    "CLASSES",
    "Images",
    "Preparation",
    "augment",
    "batches",
    "draw",
    "load",
    "mislabel",
    "normalization",
    "split",
]
