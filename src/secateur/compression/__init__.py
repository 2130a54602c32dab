"""Compresses a trained network under a limit on the accuracy it may lose, and tests the result.

    reference -> trials -> candidate, candidate, ... -> verdict

Candidates are compared on the validation images. The test images are read once, to test the file
that was chosen.
"""

from secateur.compression.api import Result, compress
from secateur.compression.settings import Settings

__all__ = ["Result", "Settings", "compress"]
