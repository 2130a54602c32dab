"""From an image file to the array that a network takes, with NumPy and Pillow alone (no torch)."""

from secateur.imaging.decode import FORMATS, PIXEL_LIMIT, SUFFIXES, decode, read_image
from secateur.imaging.preparation import Preparation

__all__ = ["FORMATS", "PIXEL_LIMIT", "SUFFIXES", "Preparation", "decode", "read_image"]
