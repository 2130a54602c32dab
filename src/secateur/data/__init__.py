"""Images in memory as uint8, split once by seed, and made ready for a network batch by batch."""

from secateur.data.images import Images, Preparation, augment, batches
from secateur.data.sources import CLASSES, load
from secateur.data.splits import draw, mislabel, normalization, split

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
