"""Where images come from: files of the published data sets, of a folder, of this package."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from secateur.data.images import Images
from secateur.errors import DataError

CLASSES = {
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    "fashionmnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
CLASSES["fashionmnist-mini"] = CLASSES["fashionmnist"]


def load(name: str, root: Path | None, *, train: bool) -> Images:
    """Load the training or the test images of a data set into memory.

    Args:
        name: As in ``recipe.Data.name``.
        root: Folder that holds the files, only read; None to use ``SECATEUR_DATA``, or else to
            download into the user's cache with torchvision.
        train: Training images, else test images.

    Raises:
        DataError: Files are missing or corrupt; the message names the file.
    """
    if name == "fashionmnist-mini":
        folder = Path(str(resources.files("secateur.data") / "fashionmnist-mini"))
        return _read_idx_pair(folder, train, CLASSES[name])
    if root is None and os.environ.get("SECATEUR_DATA"):
        root = Path(os.environ["SECATEUR_DATA"])
    if root is not None and not root.is_dir():
        raise DataError("no such data folder", where=root, remedy="check --data or SECATEUR_DATA")
    if name == "folder":
        if root is None:
            raise DataError("no images", where="data.name = folder", remedy="give --data DIR")
        return _read_folder(root, train)
    if root is None:
        root = _download(name)
    if name == "cifar10":
        return _read_cifar10(root, train)
    return _read_idx_pair(root / "FashionMNIST" / "raw", train, CLASSES[name])


def _download(name: str) -> Path:
    from torchvision import datasets  # slow to import, and seldom needed

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "secateur"
    known = {"cifar10": datasets.CIFAR10, "fashionmnist": datasets.FashionMNIST}
    try:
        for train in (True, False):
            known[name](str(cache), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cannot download {name}",
            where=cache,
            found=error,
            remedy="point --data or SECATEUR_DATA at a copy",
        ) from error
    return cache


def _read_idx_pair(folder: Path, train: bool, classes: tuple[str, ...]) -> Images:
    stem = "train" if train else "t10k"
    pixels = _read_idx(folder / f"{stem}-images-idx3-ubyte")
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte")
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
        raise DataError(
            "images and labels do not match",
            where=folder,
            found=f"shapes {pixels.shape} and {labels.shape}",
        )
    return Images(
        torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)), classes
    )


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes, gzipped or not; the format is on Y. LeCun's MNIST page."""
    packed = path.with_name(path.name + ".gz")
    source = packed if packed.exists() else path
    try:
        raw = source.read_bytes()
        content = gzip.decompress(raw) if source is packed else raw  # gzip checks its CRC
        zeros, kind, dimensions = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        if zeros or kind != 8:
            raise ValueError("not an IDX file of bytes")
        return values.reshape(shape).copy()
    except FileNotFoundError as error:
        raise DataError(
            "missing data file",
            where=packed,
            remedy="check --data or SECATEUR_DATA; without them the data is downloaded",
        ) from error
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DataError(
            "corrupt data file", where=source, found=error, remedy="fetch it again"
        ) from error


def _read_cifar10(root: Path, train: bool) -> Images:
    from torchvision import datasets

    try:
        # torchvision checks the MD5 of every file before it opens one.
        loaded = datasets.CIFAR10(str(root), train=train, download=False)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(
            "missing or corrupt data files",
            where=root / "cifar-10-batches-py",
            expected="the seven official files of the Python version",
            remedy="check --data or SECATEUR_DATA; without them the data is downloaded",
        ) from error
    pixels = torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.tensor(loaded.targets), CLASSES["cifar10"])


def _read_folder(root: Path, train: bool) -> Images:
    """Read ``root/train`` or ``root/test``, a folder a class, every image the same square size."""
    from torchvision import datasets
    from torchvision.transforms import functional as T

    folder = root / ("train" if train else "test")
    try:
        source = datasets.ImageFolder(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(
            "cannot read image folder",
            where=folder,
            expected="train/CLASS/*.png and test/CLASS/*.png",
            found=error,
        ) from error
    pixels, labels = [], []
    side = 0
    for path, label in source.samples:
        try:
            image = T.pil_to_tensor(source.loader(path))
        except (OSError, ValueError) as error:
            raise DataError("cannot read image", where=path, found=error) from error
        side = side or min(image.shape[1:])
        square = T.center_crop(T.resize(image, [side], antialias=True), [side, side])
        pixels.append(square)
        labels.append(label)
    return Images(torch.stack(pixels), torch.tensor(labels), tuple(source.classes))
