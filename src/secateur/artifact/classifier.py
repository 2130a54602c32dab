"""A packed file as a classifier: images in, class names and probabilities out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from secateur.artifact.bounds import check_network
from secateur.artifact.packing import LIMIT, unpack
from secateur.disk import read_bytes
from secateur.errors import ArtifactError, DataError
from secateur.imaging import PIXEL_LIMIT, Preparation, squares
from secateur.runtimes import OnnxRuntime

_BATCH = 64


class Classifier:
    """A network with its image preparation and class names.

    Made by :func:`load`.

    Attributes:
        about: Metadata of the file: recipe, versions, measurements.
        onnx: The bytes of the ONNX file.
        classes: Class names in the order of the scores.
        prepare: Turns an image into the network's input.
        channels: 1 for gray images, 3 for color.

    Examples:
        >>> import numpy as np
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> about = {"classes": ["cat", "dog"], "mean": [0.5], "std": [0.25]}
        >>> path = secateur.export(network, "net.onnx", (1, 8, 8), **about)
        >>> classifier = secateur.load(secateur.pack(path, "net.sec"))
        >>> images = np.zeros((2, 8, 8), np.uint8)
        >>> classifier(images).shape
        (2, 2)
        >>> [[(name, score)]] = classifier.predict(images[:1], top=1)
        >>> name in classifier.classes
        True
    """

    def __init__(self, onnx_bytes: bytes, about: dict[str, Any], threads: int) -> None:
        model, fit = check_network(onnx_bytes)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        sides = model.graph.input[0].type.tensor_type.shape.dim
        self.about, self.onnx, self.channels = about, onnx_bytes, int(sides[1].dim_value)
        self.classes, self.prepare = _described(metadata, sides, _outputs(model))
        self._runtime, self._batch = OnnxRuntime(onnx_bytes, threads), min(_BATCH, fit)

    def __call__(self, images: Any, *, max_pixels: int = PIXEL_LIMIT) -> npt.NDArray[np.float32]:
        """Return the probability of each class, float32 (N, classes).

        Args:
            images: One image or many: paths, Pillow images, arrays or tensors; see
                :func:`secateur.imaging.squares`. Each is resized and cropped around its center as
                the training images were.
            max_pixels: Largest width times height of a file.

        Raises:
            DataError: The images have another form, or cannot be read.
            ArtifactError: An output of the network is not finite.
        """
        parts = []
        for some in _batches(squares(images, self.prepare, max_pixels), self._batch):
            logits = self._runtime.run(self.prepare.normalized(np.stack(some)))
            if not np.isfinite(logits).all():
                raise ArtifactError("a network that answers with NaN or infinity")
            parts.append(_softmax(logits))
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)), np.float32)

    def predict(
        self, images: Any, top: int = 3, *, max_pixels: int = PIXEL_LIMIT
    ) -> list[list[tuple[str, float]]]:
        """Return the ``top`` most likely classes of each image with their probabilities.

        Args:
            images: See :meth:`__call__`.
            top: Number of classes for each image.
            max_pixels: Largest width times height of a file.
        """
        ranked = []
        for scores in self(images, max_pixels=max_pixels):
            best = np.argsort(-scores, kind="stable")[:top]
            ranked.append([(self.classes[i], float(scores[i])) for i in best])
        return ranked


def load(path: str | Path, *, threads: int = 2, limit: int = LIMIT) -> Classifier:
    """Open a packed file for classification.

    Args:
        path: A file that ``secateur pack`` wrote.
        threads: Threads that one operator may use.
        limit: Largest size of the unpacked ONNX file, in bytes.

    Raises:
        ArtifactError: The file is damaged, written by a newer version, larger than ``limit``, or
            contains a network outside the limits.
        StoreError: The file cannot be read.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> about = {"classes": ["cat", "dog"], "mean": [0.5], "std": [0.25]}
        >>> path = secateur.export(network, "net.onnx", (1, 8, 8), **about)
        >>> secateur.load(secateur.pack(path, "net.sec")).classes
        ('cat', 'dog')
    """
    data = read_bytes(Path(path), limit)
    try:
        unpacked = unpack(data, limit)
        return Classifier(unpacked.onnx, unpacked.about, threads)
    except ArtifactError as error:
        raise error.at(path) from error


def _outputs(model: onnx.ModelProto) -> int:
    return int(model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value)


def _described(
    metadata: dict[str, str], sides: Sequence[Any], outputs: int
) -> tuple[tuple[str, ...], Preparation]:
    """Read class names and preparation from the metadata of the ONNX file."""
    try:
        classes = tuple(str(name) for name in json.loads(metadata["classes"]))
        prepare = Preparation.from_metadata(metadata)
    except (KeyError, ValueError, TypeError, RecursionError, DataError) as error:
        raise ArtifactError(
            "a network that does not say how to prepare images",
            expected="classes, mean, std and resolution in its metadata",
            found=f"{type(error).__name__}: {error}",
        ) from error
    channels, height, width = (int(dim.dim_value) for dim in sides[1:])
    fits = prepare.channels == channels and prepare.resolution == height == width
    if not fits or len(classes) != outputs:
        raise ArtifactError(
            "a network whose metadata does not fit it",
            expected=f"{channels} channels of {height}x{width}, {outputs} classes",
            found=f"{prepare.channels} channels of {prepare.resolution}x{prepare.resolution}, "
            f"{len(classes)} classes",
        )
    return classes, prepare


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _batches(items: Iterator[npt.NDArray], size: int) -> Iterator[list[npt.NDArray]]:
    """Yield lists of up to ``size`` items; items are read lazily."""
    while some := list(islice(items, size)):
        yield some
