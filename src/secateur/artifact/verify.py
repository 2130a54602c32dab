"""Verification of a packed file: integrity, and the accuracy that it records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from secateur.artifact.classifier import Classifier, load
from secateur.console import progress
from secateur.data import open_data
from secateur.errors import ArtifactError
from secateur.recipe import Data
from secateur.training.evaluation import correct

TOLERATED = 1e-3
"""Largest fraction of images with another decision: kernels of another processor may round a sum
close to a half differently."""

_BATCH = 500


@dataclass(frozen=True)
class Verified:
    """The result of :func:`verify`.

    Attributes:
        network: The decoded network; header, checksums, hash and limits were checked.
        recorded: Number of correct images and of all images, as the file records them; None if it
            does not.
        measured: Number of correct images on this machine; None without data.
    """

    network: Classifier
    recorded: tuple[int, int] | None
    measured: int | None


def verify(path: str | Path, data: Path | None = None) -> Verified:
    """Check a file's checksums, hash and bounds, and with ``data`` the accuracy it records.

    Args:
        path: A file that ``secateur pack`` wrote.
        data: Folder with the data set that the file names, or None to leave accuracy unchecked.

    Raises:
        ArtifactError: The file is damaged, its accuracy differs from the recorded one, or the test
            images are not those that it records.
        DataError: The data cannot be read.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> about = {"classes": ["cat", "dog"], "mean": [0.5], "std": [0.25]}
        >>> path = secateur.export(network, "net.onnx", (1, 8, 8), **about)
        >>> secateur.verify(secateur.pack(path, "net.sec")).recorded is None  # no accuracy in it
        True
    """
    network = load(path)
    recorded = _recorded(network.about)
    if data is None:
        return Verified(network, recorded, None)
    if recorded is None:
        raise ArtifactError("the file records no accuracy", where=path)
    test = open_data(_recorded_data(network.about), data, network.prepare).test
    if test.fingerprint != network.about["data"]["test_sha256"]:
        raise ArtifactError(
            "other test images than the file was measured on",
            where=data,
            expected=network.about["data"]["test_sha256"],
            found=test.fingerprint,
        )
    with progress("test set", len(test)) as tick:

        def scores(pixels: Tensor) -> Tensor:
            tick.advance(len(pixels))
            return torch.from_numpy(network(pixels.numpy()))  # prepares the pixels itself

        right = int(correct(scores, test, lambda pixels: pixels, _BATCH).sum())
    if abs(right - recorded[0]) > TOLERATED * recorded[1]:
        raise ArtifactError(
            "not as accurate as the file says",
            where=path,
            expected=f"{recorded[0]:,} of {recorded[1]:,}",
            found=f"{right:,}",
        )
    return Verified(network, recorded, right)


def _recorded_data(about: dict[str, Any]) -> Data:
    """The recipe's ``data``; files that other programs packed may name the data set alone."""
    try:
        fields = about.get("recipe", {}).get("data") or {"name": about["data"]["name"]}
        return Data.model_validate(fields)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        message = f"{type(error).__name__}: {error}"
        raise ArtifactError("the file does not say which images", found=message) from error


def _recorded(about: dict[str, Any]) -> tuple[int, int] | None:
    try:
        return int(about["accuracy"]["correct"]), int(about["accuracy"]["images"])
    except (KeyError, TypeError, ValueError):
        return None
