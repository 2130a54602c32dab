"""An artifact, ready to classify: images in, class names and scores out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from PIL import Image

from secateur.artifact.bounds import check_network
from secateur.artifact.packing import LIMIT, unpack
from secateur.data import Preparation
from secateur.errors import ArtifactError, DataError
from secateur.runtimes import OnnxRuntime

Images = npt.NDArray[np.uint8] | Sequence[str | Path]
_BATCH = 64


class Classifier:
    """A network with all that stands around it: preparation before, class names after.

    Made by :func:`load`.

    Attributes:
        about: What the file says of itself: recipe, versions, measurements.
        onnx: The bytes of the ONNX file.
        classes: Class names in the order of the scores.
        prepare: From stored pixels to the network's input.
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
        said = {entry.key: entry.value for entry in model.metadata_props}
        sides = model.graph.input[0].type.tensor_type.shape.dim
        self.about, self.onnx, self.channels = about, onnx_bytes, int(sides[1].dim_value)
        self.classes, self.prepare = _described(said, sides, _outputs(model))
        self._runtime, self._batch = OnnxRuntime(onnx_bytes, threads), min(_BATCH, fit)

    def __call__(self, images: Images) -> npt.NDArray[np.float32]:
        """Return the probability of each class, float32 (N, classes).

        Args:
            images: uint8 of shape (N, H, W), (N, H, W, channels) or (N, channels, H, W); or paths
                of image files. What is not square is cropped around its center.

        Raises:
            DataError: The images are not like that, or cannot be read.
        """
        source = self._pixels(images) if isinstance(images, np.ndarray) else images
        parts = []
        for start in range(0, len(source), self._batch):
            some = source[start : start + self._batch]
            if isinstance(some, np.ndarray):
                prepared = self.prepare(torch.from_numpy(some))
            else:
                prepared = torch.cat([self.prepare(self._read(Path(path))) for path in some])
            logits = self._runtime.run(prepared.contiguous().numpy())
            parts.append(torch.from_numpy(logits).softmax(1).numpy())
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)), np.float32)

    def predict(self, images: Images, top: int = 3) -> list[list[tuple[str, float]]]:
        """Return for each image the ``top`` classes, most likely first, each with its probability.

        Args:
            images: As above.
            top: How many.
        """
        found = []
        for scores in self(images):
            best = np.argsort(-scores, kind="stable")[:top]
            found.append([(self.classes[i], float(scores[i])) for i in best])
        return found

    def _pixels(self, images: npt.NDArray) -> npt.NDArray[np.uint8]:
        """Bring an array to (N, channels, H, W), square."""
        if images.ndim == 3 and self.channels == 1:
            images = images[:, None]
        if images.dtype != np.uint8 or images.ndim != 4:
            raise self._unfit(f"{images.dtype} {images.shape}")
        if images.shape[1] != self.channels and images.shape[3] == self.channels:
            images = images.transpose(0, 3, 1, 2)
        if images.shape[1] != self.channels or min(images.shape[2:]) < 1:
            raise self._unfit(f"{images.dtype} {images.shape}")
        side = min(images.shape[2:])
        top, left = ((length - side) // 2 for length in images.shape[2:])
        return np.ascontiguousarray(images[:, :, top : top + side, left : left + side])

    def _read(self, path: Path) -> torch.Tensor:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if self.channels == 1 else "RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError("cannot read image", where=path, found=error) from error
        return torch.from_numpy(self._pixels(pixels[None]))

    def _unfit(self, found: str) -> DataError:
        shapes = "(N, H, W)" if self.channels == 1 else "(N, H, W, 3) or (N, 3, H, W)"
        return DataError("images of another kind", expected=f"uint8 {shapes}", found=found)


def load(path: str | Path, *, threads: int = 2, limit: int = LIMIT) -> Classifier:
    """Open an artifact to classify with.

    Args:
        path: A file that ``secateur pack`` wrote.
        threads: Threads that one operator may use.
        limit: Bytes that the network may take once unpacked.

    Raises:
        ArtifactError: The file is damaged, newer than this Secateur, larger than ``limit``, or
            holds what is not run.
        OSError: The file cannot be read.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> about = {"classes": ["cat", "dog"], "mean": [0.5], "std": [0.25]}
        >>> path = secateur.export(network, "net.onnx", (1, 8, 8), **about)
        >>> secateur.load(secateur.pack(path, "net.sec")).classes
        ('cat', 'dog')
    """
    data = Path(path).read_bytes()
    try:
        unpacked = unpack(data, limit)
        return Classifier(unpacked.onnx, unpacked.about, threads)
    except ArtifactError as error:
        raise error.at(path) from error


def _outputs(model: onnx.ModelProto) -> int:
    return int(model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value)


def _described(
    said: dict[str, str], sides: Sequence[Any], outputs: int
) -> tuple[tuple[str, ...], Preparation]:
    """Class names and preparation, from the metadata of the ONNX file."""
    try:
        classes = tuple(str(name) for name in json.loads(said["classes"]))
        mean, std = (tuple(float(v) for v in json.loads(said[key])) for key in ("mean", "std"))
        side = int(said["resolution"])
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(
            "a network that does not say how to prepare images",
            expected="classes, mean, std and resolution in its metadata",
            found=f"{type(error).__name__}: {error}",
        ) from error
    channels, height, width = (int(dim.dim_value) for dim in sides[1:])
    fits = len(mean) == len(std) == channels and side == height == width and all(std)
    if not fits or channels not in (1, 3) or len(classes) != outputs:
        raise ArtifactError(
            "a network whose metadata does not fit it",
            expected=f"{channels} channels of {height}x{width}, {outputs} classes",
            found=f"{len(mean)} channels of {side}x{side}, {len(classes)} classes",
        )
    return classes, Preparation(mean, std, side)
