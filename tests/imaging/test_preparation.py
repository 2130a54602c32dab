"""One description, two steps, and the same tensor as torchvision and timm make of a file."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import ResNet18_Weights, Swin_T_Weights

from secateur.errors import DataError
from secateur.imaging import Preparation

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVEL = 1 / 255 / 0.224  # one 8-bit level after the division by the smallest std


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, so that half a pixel shows, and noisy, so that the filter does."""
    rng = np.random.default_rng(width * height)
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / 9 + i) * np.cos(y / 7) * 90 + 128 for i in range(3)]
    noisy = np.stack(planes, axis=2) + rng.normal(0, 15, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def prepared(prepare: Preparation, image: Image.Image) -> torch.Tensor:
    return prepare(torch.from_numpy(prepare.fit(image)[None]))[0]


@pytest.mark.parametrize("weights", [ResNet18_Weights.DEFAULT, Swin_T_Weights.DEFAULT])
@pytest.mark.parametrize("size", [(640, 480), (301, 533), (224, 224), (90, 31), (235, 1000)])
def test_torchvision_makes_the_same_tensor(weights: object, size: tuple[int, int]) -> None:
    transforms = weights.transforms()  # type: ignore[attr-defined]
    prepare = Preparation.from_torchvision(transforms)
    expected = transforms(picture(*size))
    difference = (prepared(prepare, picture(*size)) - expected).abs()
    # Pillow resizes in two passes, rounds between them, and chooses their order by the size.
    levels = 2 if prepare.interpolation == "bicubic" else 1
    assert difference.max() <= (levels + 0.01) * LEVEL


def test_odd_margins_are_cropped_as_torchvision_crops_them() -> None:
    from torchvision.transforms import functional as T

    prepare = Preparation.from_timm(
        {"input_size": (3, 224, 224), "crop_pct": 0.95, "mean": IMAGENET[0], "std": IMAGENET[1],
         "interpolation": "bicubic", "crop_mode": "center"}
    )  # fmt: skip
    assert (prepare.side, prepare.resolution, prepare.interpolation) == (235, 224, "bicubic")
    for size in ((238, 235), (239, 235), (235, 240), (1000, 333)):
        resized = T.resize(picture(*size), [235], T.InterpolationMode.BICUBIC)
        pixels = T.pil_to_tensor(T.center_crop(resized, [224]))
        expected = T.normalize(pixels / 255, *IMAGENET)
        assert (prepared(prepare, picture(*size)) - expected).abs().max() <= 1.01 * LEVEL


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    resolution=st.integers(1, 64),
    more=st.integers(0, 20),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    squash=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_any_size_becomes_the_square(
    width: int, height: int, resolution: int, more: int, interpolation: str, squash: bool
) -> None:
    prepare = Preparation(
        (0.5,),
        (0.25,),
        resolution,
        resolution + more,
        interpolation,
        squash,  # type: ignore[arg-type]
    )
    pixels = prepare.fit(np.full((height, width), 77, np.uint8))
    assert pixels.shape == (1, resolution + more, resolution + more)
    assert (pixels == 77).all()
    assert prepare(torch.from_numpy(pixels[None])).shape == (1, 1, resolution, resolution)


def test_a_thin_image_costs_no_more_than_its_square() -> None:
    thin = np.zeros((1, 2_000_000, 3), np.uint8)  # whole, it would become 224 x 448,000,000
    assert Preparation(*IMAGENET, 224).fit(thin).shape == (3, 224, 224)


@pytest.mark.parametrize("side", [28, 40])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_stored_pixels_and_files_agree(side: int, interpolation: str) -> None:
    prepare = Preparation((0.3,), (0.25,), 32, interpolation=interpolation)  # type: ignore[arg-type]
    image = picture(side, side, "L")
    stored = prepare(torch.from_numpy(np.array(image))[None, None])[0]
    assert (stored - prepared(prepare, image)).abs().max() <= 1.1 / 255 / 0.25


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_without_torch_it_is_the_same(order: str) -> None:
    prepare = Preparation(*IMAGENET, 24, 31, order=order)  # type: ignore[arg-type]
    pixels = prepare.fit(picture(50, 60))[None]
    normalized = prepare.normalized(pixels)
    assert normalized.flags.c_contiguous
    assert normalized == pytest.approx(prepare(torch.from_numpy(pixels)).numpy(), abs=1e-6)
    red = Preparation((0.0,) * 3, (1.0,) * 3, 1, order=order)  # type: ignore[arg-type]
    channels = red.normalized(red.fit(Image.new("RGB", (1, 1), (255, 0, 0)))[None]).ravel()
    assert channels.tolist() == ([1, 0, 0] if order == "RGB" else [0, 0, 1])


def test_it_survives_as_data() -> None:
    plain = Preparation((0.5,), (0.25,), 28)
    assert plain.to_metadata() == {"mean": "[0.5]", "std": "[0.25]", "resolution": "28"}
    full = Preparation(*IMAGENET, 224, 256, "bicubic", True, "BGR")
    for each in (plain, full, full.at(96)):
        assert Preparation.from_dict(json.loads(json.dumps(each.to_dict()))) == each
        assert Preparation.from_metadata(each.to_metadata()) == each
    assert full.at(96).side == 110
    assert Preparation((0.5,), (0.25,), 28, 28) == plain


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.5, 0.5]},
        {"std": [0.0]},
        {"std": [float("nan")]},
        {"resize": 10},
        {"resize": True},
        {"resolution": "28"},
        {"resolution": 10**9, "resize": 10**9},
        {"interpolation": "nearest"},
        {"order": "GBR"},
        {"antialias": False},
        {"crop": "border"},
        {"mean": None},
    ],
)
def test_a_description_that_does_not_fit_is_refused(changes: dict[str, object]) -> None:
    values = Preparation((0.5,), (0.25,), 28).to_dict() | changes
    with pytest.raises(DataError, match="a preparation that"):
        Preparation.from_dict(values)


def test_weights_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match="ImageClassification"):
        Preparation.from_torchvision(lambda image: image)
    config = {"input_size": (3, 224, 224), "mean": IMAGENET[0], "std": IMAGENET[1]}
    for changes in ({"input_size": (3, 224, 192)}, {"crop_mode": "border"}):
        with pytest.raises(DataError, match="not supported"):
            Preparation.from_timm(config | changes)
    with pytest.raises(DataError, match="cannot be read"):
        Preparation.from_timm({})
    assert Preparation.from_timm(config).side == 256


def test_bytes_of_a_file_reach_the_network_in_the_described_order() -> None:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (10, 20, 30)).save(file, "PNG")
    prepare = Preparation((0.0,) * 3, (1 / 255,) * 3, 2)
    with Image.open(file) as image:
        values = prepared(prepare, image.convert("RGB"))
    assert values[:, 0, 0].tolist() == pytest.approx([10, 20, 30])
