"""Images as uint8, split once by seed, and prepared for a network batch by batch."""

from secateur.data.distortions import distort, mix
from secateur.data.folder import Folder, load_folder
from secateur.data.images import Images, MappedPixels, augment, batches
from secateur.data.sources import CLASSES, load
from secateur.data.splits import draw, mislabel, normalization, split
from secateur.imaging import Preparation

__all__ = [
    "CLASSES",
    "Folder",
    "Images",
    "MappedPixels",
    "Preparation",
    "augment",
    "batches",
    "distort",
    "draw",
    "load",
    "load_folder",
    "mislabel",
    "mix",
    "normalization",
    "split",
]
