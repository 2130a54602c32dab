"""Images in memory as uint8, split once by seed, and made ready for a network batch by batch."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur import recipe
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


@dataclass(frozen=True)
class Images:
    """Images with their labels.

    Attributes:
        pixels: uint8 tensor of shape (N, C, H, W).
        labels: int64 tensor of shape (N,), each in [0, classes).
        classes: Class names in the order of the labels.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Return the images at ``indices``, an int64 tensor, in that order."""
        return Images(self.pixels[indices], self.labels[indices], self.classes)

    def spread(self, count: int) -> Images:
        """Return ``count`` images, evenly spaced so that a set sorted by class is seen whole.

        All of them where ``count`` is 0 or more than there are.
        """
        if not 0 < count < len(self):
            return self
        chosen = torch.linspace(0, len(self) - 1, count).long()
        return self.take(chosen.to(self.labels.device))

    def to(self, device: torch.device) -> Images:
        """Return the same images on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over pixels and labels, as hexadecimal digits."""
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Preparation:
    """What stands between stored pixels and the network: resize, then normalize.

    Attributes:
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        resolution: Side in pixels of the square the network takes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int

    def __call__(self, pixels: Tensor) -> Tensor:
        """Turn uint8 (N, C, H, W) into normalized float32 (N, C, R, R), channels last."""
        images = pixels.float().div_(255)
        if images.shape[-2:] != (self.resolution, self.resolution):
            side = (self.resolution, self.resolution)
            images = F.interpolate(images, size=side, mode="bilinear", antialias=True)
        mean = images.new_tensor(self.mean).view(1, -1, 1, 1)
        std = images.new_tensor(self.std).view(1, -1, 1, 1)
        return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def augment(pixels: Tensor, config: recipe.Augment, generator: torch.Generator) -> Tensor:
    """Flip, crop and cut out each image of a batch by its own draw.

    Args:
        pixels: uint8, shape (N, C, H, W).
        config: Which of the three, and how strongly.
        generator: Source of randomness on the CPU, so that every device draws the same.

    Returns:
        uint8, shape (N, C, H, W); a new tensor where anything changed.
    """
    n, _, height, width = pixels.shape
    device = pixels.device
    if config.flip:
        flipped = (torch.rand(n, generator=generator) < 0.5).to(device)
        pixels = torch.where(flipped.view(n, 1, 1, 1), pixels.flip(3), pixels)
    if config.crop:
        shifts = torch.randint(0, 2 * config.crop + 1, (2, n), generator=generator).to(device)
        rows = torch.arange(height, device=device) + shifts[0].unsqueeze(1)
        columns = torch.arange(width, device=device) + shifts[1].unsqueeze(1)
        padded = F.pad(pixels, (config.crop,) * 4)
        image = torch.arange(n, device=device).view(n, 1, 1)
        # Indexing puts the channels last: (N, H, W, C).
        cropped = padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)]
        pixels = cropped.permute(0, 3, 1, 2)
    if config.cutout:
        corner = torch.rand(2, n, generator=generator).to(device)
        top = (corner[0] * (height - config.cutout + 1)).long().view(n, 1, 1, 1)
        left = (corner[1] * (width - config.cutout + 1)).long().view(n, 1, 1, 1)
        row = torch.arange(height, device=device).view(1, 1, height, 1)
        column = torch.arange(width, device=device).view(1, 1, 1, width)
        inside = (row >= top) & (row < top + config.cutout)
        inside = inside & (column >= left) & (column < left + config.cutout)
        pixels = pixels.masked_fill(inside, 0)
    return pixels


def batches(images: Images, prepare: Preparation, size: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield all images in order, prepared, ``size`` at a time, as a runtime takes them.

    Yields:
        float32, shape (size, C, R, R), in the order of a C array; the last may be shorter.
    """
    for start in range(0, len(images), size):
        yield prepare(images.pixels[start : start + size]).contiguous().cpu().numpy()


def split(labels: Tensor, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split into training and validation, class by class.

    Args:
        labels: int64, shape (N,).
        validation: Fraction of each class that is held out, rounded, at least one image.
        seed: Decides which.

    Returns:
        Two sorted, disjoint int64 tensors of indices: training, validation.

    Raises:
        DataError: A class has fewer than two images.
    """
    generator = torch.Generator().manual_seed(seed)
    training, held = [], []
    for label in labels.unique().tolist():
        members = torch.where(labels == label)[0]
        if len(members) < 2:
            raise DataError(
                "too few images to split",
                where=f"class {label}",
                expected="at least 2 training images",
                found=len(members),
            )
        order = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(validation * len(members))), len(members) - 1)
        held.append(order[:count])
        training.append(order[count:])
    return torch.cat(training).sort().values, torch.cat(held).sort().values


def draw(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw some images, of each class as many as its share, to within one.

    Args:
        labels: int64, shape (N,).
        count: How many, at least 1.
        seed: Decides which.

    Returns:
        Sorted int64 tensor of ``count`` distinct indices into ``labels``.

    Raises:
        DataError: There are fewer images.
    """
    if count > len(labels):
        raise DataError(
            "too few training images",
            where="data.images",
            expected=f"at most {len(labels)}",
            found=count,
            remedy="lower data.images or data.validation",
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    # Each image gets a place in (0, 1) among its class; the lowest places are drawn, so that every
    # class gives up its images at the same pace and the total is exact.
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    ranked = order[place[order].argsort(stable=True)]
    return ranked[:count].sort().values


def mislabel(labels: Tensor, fraction: float, classes: int, seed: int) -> Tensor:
    """Replace a fraction of labels by another class, each other class being equally likely.

    Of one seed, the images that a smaller fraction mislabels are among those of a larger one.

    Args:
        labels: int64, shape (N,), each in [0, classes).
        fraction: In [0, 1); ``round(fraction * N)`` labels change.
        classes: 2 or more where any label changes.
        seed: Decides which, and to what.

    Returns:
        int64, shape (N,); a new tensor.

    Raises:
        DataError: There is no other class.
    """
    count = round(fraction * len(labels))
    if count and classes < 2:
        raise DataError(
            "no other class to mislabel as",
            where="data.label_noise",
            expected="at least 2 classes",
            found=classes,
            remedy="set data.label_noise = 0",
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    noisy = labels.clone()
    if count:
        shift = torch.randint(1, classes, (len(labels),), generator=generator)[:count]
        noisy[chosen] = (labels[chosen] + shift) % classes
    return noisy


def normalization(images: Images, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in units of [0, 1].

    ``half`` gives 0.5 and 0.5, that is [-1, 1]; ``dataset`` measures ``images``.
    """
    channels = images.pixels.shape[1]
    if kind == "half":
        return (0.5,) * channels, (0.5,) * channels
    values = images.pixels.transpose(0, 1).reshape(channels, -1)
    # A histogram is exact, needs no float copy of the set, and is the same on every device.
    counts = torch.stack([torch.bincount(row.long(), minlength=256) for row in values]).double()
    level = torch.arange(256, dtype=torch.float64, device=counts.device) / 255
    mean = (counts * level).sum(1) / counts.sum(1)
    variance = (counts * (level - mean.unsqueeze(1)) ** 2).sum(1) / counts.sum(1)
    std = variance.sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


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
        folder = Path(str(resources.files("secateur") / "datasets" / "fashionmnist-mini"))
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
