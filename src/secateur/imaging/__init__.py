"""Image files to network inputs, with NumPy and Pillow only (no torch)."""

from secateur.imaging.decode import FORMATS, PIXEL_LIMIT, SUFFIXES, decode, read_image, read_size
from secateur.imaging.preparation import Preparation
from secateur.imaging.snippet import in_words, python_source
from secateur.imaging.user_images import squares

__all__ = [
    "FORMATS",
    "PIXEL_LIMIT",
    "SUFFIXES",
    "Preparation",
    "decode",
    "in_words",
    "python_source",
    "read_image",
    "read_size",
    "squares",
]
