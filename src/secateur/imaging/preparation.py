"""Image preparation: how an image becomes a network's input, in two steps.

1. :meth:`Preparation.fit`: resize an image of any size and crop a centered square, in 8 bits. Data
   sets store the result.
2. :meth:`Preparation.__call__`: crop to the network's input, scale to [0, 1], subtract the mean,
   divide by the standard deviation, in float32.

Together they equal the evaluation transforms of torchvision and timm, up to rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from secateur.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
"""From torch's interpolation mode to Pillow's filter. Downsampling is antialiased."""


@dataclass(frozen=True)
class Preparation:
    """Image preparation: resize, center crop, normalize.

    Attributes:
        mean: Per channel of the network's input, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        resolution: Side in pixels of the square input.
        resize: Length in pixels of the shorter side before the crop; None for ``resolution``.
        interpolation: Filter of the resize. Downsampling is antialiased.
        squash: Resize both sides to ``resize``, without keeping the aspect ratio.
        order: Order of the channels of a color network.

    Raises:
        DataError: A field is invalid.

    Examples:
        >>> import numpy as np, secateur, torch
        >>> prepare = secateur.Preparation((0.5,) * 3, (0.25,) * 3, resolution=224, resize=256)
        >>> pixels = prepare.fit(np.zeros((480, 640, 3), np.uint8))
        >>> pixels.shape
        (3, 256, 256)
        >>> prepare(torch.from_numpy(pixels[None])).shape
        torch.Size([1, 3, 224, 224])
        >>> secateur.Preparation.from_dict(prepare.to_dict()) == prepare
        True
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    squash: bool = False
    order: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        side = self.resolution if self.resize is None else self.resize
        for fits, expected in (
            (len(self.mean) == len(self.std) and len(self.mean) in (1, 3), "1 or 3 means and stds"),
            (all(map(math.isfinite, numbers)) and all(s > 0 for s in self.std), "stds above 0"),
            (1 <= self.resolution <= side <= 2**14, "1 <= resolution <= resize <= 16384"),
            (self.interpolation in _FILTERS, f"interpolation one of {', '.join(_FILTERS)}"),
            (self.order in ("RGB", "BGR"), "order RGB or BGR"),
        ):
            if not fits:
                raise DataError("a preparation that does not fit", expected=expected, found=self)
        if self.resize == self.resolution:  # one representation of each preparation, for equality
            object.__setattr__(self, "resize", None)

    @property
    def channels(self) -> int:
        """Channels of the network's input: 1 for gray, 3 for color."""
        return len(self.mean)

    @property
    def side(self) -> int:
        """Side in pixels of the squares of :meth:`fit`."""
        return self.resolution if self.resize is None else self.resize

    def at(self, resolution: int) -> Preparation:
        """The same preparation for another input size, with ``resize`` scaled in proportion."""
        resize = None if self.resize is None else round(self.resize * resolution / self.resolution)
        return replace(self, resolution=resolution, resize=resize)

    # ---- step 1: any image to a square of 8 bits

    def fit(self, image: Image.Image | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize, then crop a centered square.

        Args:
            image: Image of mode ``L`` (gray networks) or ``RGB``, of any size; or its pixels as
                uint8 (H, W) or (H, W, 3).

        Returns:
            uint8 (channels, side, side), channels in the order R, G, B.
        """
        if not isinstance(image, Image.Image):
            image = Image.fromarray(image)
        expected = "L" if self.channels == 1 else "RGB"
        if image.mode != expected:
            image = image.convert(expected)
        # Only the cropped region is computed. Otherwise an image of 1 x 100,000 pixels would be
        # resized to 224 x 22,400,000.
        (left, right), (top, bottom) = (
            self._region(length, scaled)
            for length, scaled in zip(image.size, self._scaled(image.size), strict=True)
        )
        square = image.resize(
            (self.side, self.side), _FILTERS[self.interpolation], box=(left, top, right, bottom)
        )
        pixels = np.array(square)
        return np.ascontiguousarray(pixels.reshape(self.side, self.side, -1).transpose(2, 0, 1))

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height after the resize and before the crop, as torchvision rounds them."""
        width, height = size
        if self.squash:
            return self.side, self.side
        shorter = min(width, height)
        return self.side * width // shorter, self.side * height // shorter

    def _region(self, length: int, scaled: int) -> tuple[float, float]:
        """The interval of an image's width or height inside the crop, in pixels of the image."""
        start, ratio = _offset(scaled, self.side, self.resolution), length / scaled
        return start * ratio, min((start + self.side) * ratio, length)

    # ---- step 2: squares of 8 bits to the network's input

    def __call__(self, pixels: Tensor) -> Tensor:
        """Crop and normalize a batch.

        Squares of another side than :attr:`side` are resized first, in float.

        Args:
            pixels: uint8, shape (N, channels, S, S).

        Returns:
            float32, shape (N, channels, R, R), channels last in memory.
        """
        import torch  # imported here, because packed files run without torch
        import torch.nn.functional as F

        images = pixels.float().div_(255)
        if images.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            images = F.interpolate(images, size=size, mode=self.interpolation, antialias=True)
            if self.interpolation == "bicubic":
                images = images.clamp_(0, 1)  # bicubic interpolation overshoots at edges
        if self.side != self.resolution:
            start = _middle(self.side, self.resolution)
            stop = start + self.resolution
            images = images[..., start:stop, start:stop]
        if self.order == "BGR":
            images = images.flip(1)
        mean = images.new_tensor(self.mean).view(1, -1, 1, 1)
        std = images.new_tensor(self.std).view(1, -1, 1, 1)
        return images.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)

    def normalized(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Crop and normalize the result of :meth:`fit`, without torch.

        Args:
            pixels: uint8, shape (N, channels, side, side).

        Returns:
            float32, shape (N, channels, R, R), C-contiguous.
        """
        start = _middle(self.side, self.resolution)
        stop = start + self.resolution
        images = pixels[..., start:stop, start:stop].astype(np.float32) / np.float32(255)
        if self.order == "BGR":
            images = images[:, ::-1]
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return np.ascontiguousarray((images - mean) / std)

    # ---- as data

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data, for JSON."""
        return asdict(self) | {
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": self.side,
            "antialias": True,
            "crop": "center",
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preparation:
        """The inverse of :meth:`to_dict`.

        Raises:
            DataError: A field is missing, of another type or out of range.
        """
        try:
            resolution, resize = (_integer(values[key]) for key in ("resolution", "resize"))
            if values.get("antialias", True) is not True or values.get("crop") != "center":
                raise ValueError("only an antialiased resize and a center crop are known")
            return cls(
                mean=tuple(float(v) for v in values["mean"]),
                std=tuple(float(v) for v in values["std"]),
                resolution=resolution,
                resize=resize,
                interpolation=values["interpolation"],
                squash=bool(values["squash"]),
                order=values["order"],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            message = f"{type(error).__name__}: {error}"
            raise DataError("a preparation that cannot be read", found=message) from error

    def to_metadata(self) -> dict[str, str]:
        """Metadata of an ONNX file: ``mean``, ``std``, ``resolution``; ``preparation`` if needed.

        A plain bilinear resize to the input size needs no ``preparation``; this keeps older files
        unchanged.
        """
        metadata = {"mean": json.dumps(self.mean), "std": json.dumps(self.std)}
        metadata["resolution"] = str(self.resolution)
        if self != Preparation(self.mean, self.std, self.resolution):
            metadata["preparation"] = json.dumps(self.to_dict(), sort_keys=True)
        return metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Preparation:
        """The inverse of :meth:`to_metadata`.

        Raises:
            DataError: The metadata lacks a key or is invalid.
        """
        try:
            if "preparation" in metadata:
                return cls.from_dict(json.loads(metadata["preparation"]))
            mean, std = (json.loads(metadata[key]) for key in ("mean", "std"))
            values = {"mean": mean, "std": std, "resolution": int(metadata["resolution"])}
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            message = f"{type(error).__name__}: {error}"
            raise DataError("a preparation that cannot be read", found=message) from error
        neutral = Preparation((0.5,), (0.5,), 1).to_dict()
        return cls.from_dict(neutral | values | {"resize": values["resolution"]})

    # ---- from a network's own weights

    @classmethod
    def from_torchvision(cls, transforms: Any) -> Preparation:
        """Convert the evaluation transforms of torchvision's classification weights.

        Args:
            transforms: Result of ``weights.transforms()``.

        Raises:
            DataError: The transforms are of another kind, or not antialiased.
        """
        try:
            (resize,), (crop,) = transforms.resize_size, transforms.crop_size
            filters, antialias = transforms.interpolation.value, transforms.antialias
            mean, std = tuple(transforms.mean), tuple(transforms.std)
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(
                "transforms of another kind",
                expected="a torchvision weights' ImageClassification preset",
                found=type(transforms).__name__,
            ) from error
        if antialias is False:
            raise DataError("transforms without antialiasing", found=transforms)
        return cls(mean, std, crop, resize, filters)

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preparation:
        """Convert timm's ``network.pretrained_cfg``.

        The shorter side is resized to ``floor(size / crop_pct)``, as ``timm.data`` does.

        Raises:
            DataError: The input is not square, or its crop or interpolation is not supported.
        """
        try:
            _, height, width = config["input_size"]
            resize = math.floor(height / (config.get("crop_pct") or 0.875))
            crop = config.get("crop_mode") or "center"
            mean, std = tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
        except (KeyError, TypeError, ValueError) as error:
            message = f"{type(error).__name__}: {error}"
            raise DataError("a pretrained_cfg that cannot be read", found=message) from error
        filters: Any = config.get("interpolation") or "bicubic"
        if height != width or crop not in ("center", "squash"):
            raise DataError(
                "a pretrained_cfg that is not supported",
                expected="a square input, crop_mode center or squash",
                found=f"{height}x{width}, crop_mode {crop}",
            )
        return cls(mean, std, height, resize, filters, crop == "squash")


def _middle(length: int, size: int) -> int:
    """Start of a center crop, rounded as in torchvision."""
    return round((length - size) / 2)


def _offset(length: int, side: int, resolution: int) -> int:
    """Start of the crop to ``side`` such that the inner crop to ``resolution`` is centered."""
    return _middle(length, resolution) - _middle(side, resolution)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected an integer, found {value!r:.40}")
    return value
