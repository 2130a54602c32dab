"""Data sets: disjoint parts of uint8 images, prepared in batches."""

from secateur.data.dataset import DataSet
from secateur.data.distortions import distort, mix
from secateur.data.folder import FolderDataSet, load_folder
from secateur.data.images import Images, MappedPixels, augment, batches
from secateur.data.official import load
from secateur.data.sources import geometry, open_data
from secateur.data.splits import draw, mislabel, normalization, split
from secateur.imaging import Preparation

__all__ = [
    "DataSet",
    "FolderDataSet",
    "Images",
    "MappedPixels",
    "Preparation",
    "augment",
    "batches",
    "distort",
    "draw",
    "geometry",
    "load",
    "load_folder",
    "mislabel",
    "mix",
    "normalization",
    "open_data",
    "split",
]
