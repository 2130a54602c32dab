"""The protocol of runtimes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class Runtime(Protocol):
    """A loaded file."""

    @property
    def name(self) -> str:
        """The runtime's name, for example ``onnxruntime``."""

    @property
    def version(self) -> str:
        """The runtime's version."""

    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""
