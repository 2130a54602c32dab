"""Public functions on files and arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import environment
from secateur.artifact import packing
from secateur.artifact.screening import screen
from secateur.data import Images, Preparation
from secateur.disk import read_bytes, write_bytes
from secateur.errors import DataError, NetworkError
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.reader import read_self_contained
from secateur.pruning.find import find_prunable
from secateur.sensitivity.scan import ScanPoint, scan_layers


def export(
    model: nn.Module,
    path: str | Path,
    input_shape: tuple[int, int, int],
    *,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    preparation: Preparation | None = None,
) -> Path:
    """Export a classifier to one self-contained ONNX file.

    Batch-norms are folded into convolutions, and channel shuffles into the order of weights. Class
    names and image preparation are stored in the file for :func:`secateur.load`.

    Args:
        model: Any classifier; not modified.
        path: The file to write.
        input_shape: Channels, height and width of an image.
        classes: Class names in the order of the outputs.
        mean: Mean per channel, of pixels in [0, 1].
        std: Standard deviation per channel, of pixels in [0, 1].
        preparation: Complete image preparation in place of ``mean`` and ``std``: resize, crop, mean
            and standard deviation.

    Returns:
        ``path``.

    Raises:
        DataError: ``preparation`` does not fit the input, or is given together with ``mean``.
        NetworkError: The network cannot be exported.
        StoreError: The file cannot be written.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> secateur.export(network, "net.onnx", (1, 8, 8), classes=["cat", "dog"]).name
        'net.onnx'
    """
    metadata = {"resolution": str(input_shape[1])}
    for key, values in (("classes", classes), ("mean", mean), ("std", std)):
        if values:
            metadata[key] = json.dumps(list(values))
    if preparation is not None:
        expected = preparation.channels, preparation.resolution, preparation.resolution
        if mean or std or input_shape != expected:
            raise DataError(
                "a preparation that does not fit",
                expected=f"input_shape {expected}, neither mean nor std",
                found=f"input_shape {input_shape}",
            )
        metadata |= preparation.to_metadata()
    export_onnx(model, input_shape, Path(path), metadata)
    return Path(path)


def scan(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    fractions: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
) -> list[ScanPoint]:
    """Measure accuracy with each group of channels pruned separately, without retraining.

    Args:
        model: A classifier on the CPU; not modified.
        images: Validation images, uint8 (N, C, R, R).
        labels: Their classes, int64 (N,).
        mean: Mean per channel, of pixels in [0, 1].
        std: Standard deviation per channel, of pixels in [0, 1].
        fractions: Fractions of each group to remove, in (0, 1).

    Returns:
        One point per group and fraction: accuracy and its paired drop, with 95 % intervals.

    Raises:
        NetworkError: The network cannot be traced, or has no removable channels.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
        >>> labels = torch.randint(0, 2, (20,))
        >>> points = secateur.scan(network, images, labels, mean=[0.5], std=[0.25], fractions=[0.5])
        >>> [(point.layer, point.fraction, point.n) for point in points]
        [('0', 0.5, 20)]
    """
    prepare = Preparation(tuple(mean), tuple(std), images.shape[-1])
    prunable = find_prunable(model, torch.zeros(1, *images.shape[1:]))
    if not prunable.groups:
        raise NetworkError("no channels can be removed", found=prunable.protected)
    labeled = Images(images, labels, ())
    return scan_layers(model, prunable, [], fractions, labeled, prepare)


def pack(source: str | Path, target: str | Path, about: Mapping[str, Any] | None = None) -> Path:
    """Pack an ONNX file into a small ``.sec`` file, which decodes to it bit for bit.

    Args:
        source: An ONNX file, preferably quantized. External data is included; it is read from the
            file's own folder only.
        target: The file to write.
        about: Plain data to store: provenance, measurements. At most 1 MiB as JSON.

    Returns:
        ``target``.

    Raises:
        ArtifactError: ``source`` is not an ONNX file, too large, or its external data is missing.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> path = secateur.export(network, "net.onnx", (1, 8, 8))
        >>> packed = secateur.pack(path, "net.sec")
        >>> secateur.unpack(packed, "again.onnx").read_bytes() == path.read_bytes()
        True
    """
    source, target = Path(source), Path(target)
    screen(source)
    data, _ = read_self_contained(source)
    provenance = {"versions": environment.versions(), "source": source.name}
    write_bytes(target, packing.pack(data, provenance | dict(about or {})), [source])
    return target


def unpack(source: str | Path, target: str | Path) -> Path:
    """Restore the ONNX file in a ``.sec`` file.

    Args:
        source: A packed file.
        target: The ONNX file to write.

    Returns:
        ``target``.

    Raises:
        ArtifactError: The file is damaged, newer than this version, or too large.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> _ = secateur.pack(secateur.export(network, "net.onnx", (1, 8, 8)), "net.sec")
        >>> secateur.unpack("net.sec", "copy.onnx").name
        'copy.onnx'
    """
    source, target = Path(source), Path(target)
    write_bytes(target, packing.unpack(read_bytes(source, packing.LIMIT)).onnx, [source])
    return target
