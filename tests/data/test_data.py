from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secateur.data import (
    Images,
    Preparation,
    augment,
    draw,
    mislabel,
    normalization,
    split,
)
from secateur.errors import DataError
from secateur.recipe import Augment


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=50)
def test_split_is_a_stratified_partition(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(9))]
    training, validation = split(labels, fraction, seed)
    assert torch.cat([training, validation]).sort().values.tolist() == list(range(len(labels)))
    for label, n in enumerate(counts):
        held = int((labels[validation] == label).sum())
        assert held == min(max(1, round(fraction * n)), n - 1)
    again = split(labels, fraction, seed)
    assert torch.equal(again[0], training)


def test_split_refuses_a_class_with_one_image() -> None:
    with pytest.raises(DataError, match=r"class 1.*at least 2.*found 1"):
        split(torch.tensor([0, 0, 0, 1]), 0.2, 0)


def test_normalization_is_exact() -> None:
    images = Images(
        torch.tensor([[0, 255], [255, 255]], dtype=torch.uint8).view(1, 1, 2, 2),
        torch.tensor([0]),
        ("a",),
    )
    mean, std = normalization(images, "dataset")
    assert mean == (0.75,)
    assert std == (pytest.approx((3 / 16) ** 0.5),)
    assert normalization(images, "half") == ((0.5,), (0.5,))


def test_preparation_scales_resizes_and_goes_channels_last() -> None:
    pixels = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    ready = Preparation((0.5,) * 3, (0.25,) * 3, 16)(pixels)
    assert ready.shape == (2, 3, 16, 16)
    assert ready.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(ready, torch.full_like(ready, 2.0))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_flip_mirrors_whole_images_about_half_the_time() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).repeat(1000, 1, 1, 1)
    flipped = augment(pixels, Augment(flip=True), _generator())
    rows = flipped.view(1000, 4)
    mirrored = (rows == torch.tensor([3, 2, 1, 0])).all(1)
    assert (mirrored | (rows == torch.tensor([0, 1, 2, 3])).all(1)).all()
    assert 430 < int(mirrored.sum()) < 570


def test_crop_shifts_each_image_by_its_own_draw() -> None:
    pixels = torch.zeros(500, 2, 9, 9, dtype=torch.uint8)
    pixels[:, 1, 4, 4] = 7
    shifted = augment(pixels, Augment(crop=2), _generator())
    assert shifted.shape == pixels.shape
    assert (shifted[:, 0] == 0).all()
    places = {tuple(place.tolist()) for place in torch.nonzero(shifted[:, 1])[:, 1:]}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def test_cutout_blanks_one_square_inside_each_image() -> None:
    pixels = torch.full((200, 1, 8, 8), 9, dtype=torch.uint8)
    holes = augment(pixels, Augment(cutout=3), _generator()) == 0
    assert (holes.flatten(1).sum(1) == 9).all()
    assert (holes.any(2).sum(2) == 3).all()
    assert (holes.any(3).sum(2) == 3).all()
    assert holes.flatten(1).unique(dim=0).shape[0] > 10


def test_no_augmentation_returns_the_batch_itself() -> None:
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert augment(pixels, Augment(), _generator()) is pixels


def test_spread_sees_a_sorted_set_from_end_to_end() -> None:
    pixels = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1)
    images = Images(pixels, torch.arange(7), tuple("abcdefg"))
    assert images.spread(3).labels.tolist() == [0, 3, 6]
    assert images.spread(0) is images
    assert images.spread(8) is images


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 3),
)
@example(counts=[1, 1, 1, 10], share=0.625, seed=0)
@settings(deadline=None, max_examples=50)
def test_drawn_images_are_as_many_as_asked_of_each_class_its_share(
    counts: list[int], share: float, seed: int
) -> None:
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    count = max(1, int(share * len(labels)))
    drawn = draw(labels, count, seed)
    assert len(set(drawn.tolist())) == len(drawn) == count
    assert torch.equal(drawn, drawn.sort().values)
    for label, n in enumerate(counts):
        bound = 0.5 + len(counts) * n / (2 * len(labels)) + 1e-9
        assert abs(int((labels[drawn] == label).sum()) - count * n / len(labels)) <= bound
    assert set(drawn.tolist()) <= set(draw(labels, min(count + 1, len(labels)), seed).tolist())
    assert torch.equal(drawn, draw(labels, count, seed))


def test_another_seed_draws_other_images() -> None:
    labels = torch.arange(100) % 4
    assert not torch.equal(draw(labels, 20, 0), draw(labels, 20, 1))
    with pytest.raises(DataError, match="at most 100, found 101"):
        draw(labels, 101, 0)


def test_exactly_the_fraction_gets_another_class_each_as_likely() -> None:
    labels = torch.arange(4000) % 5
    noisy = mislabel(labels, 0.4, 5, 0)
    wrong = noisy != labels
    assert int(wrong.sum()) == 1600
    assert 0 <= int(noisy.min()) <= int(noisy.max()) < 5
    shifts = ((noisy - labels) % 5)[wrong].bincount(minlength=5).tolist()
    assert shifts[0] == 0
    assert all(340 < count < 460 for count in shifts[1:])
    assert torch.equal(noisy, mislabel(labels, 0.4, 5, 0))
    assert not torch.equal(noisy, mislabel(labels, 0.4, 5, 1))
    less = mislabel(labels, 0.2, 5, 0)
    assert torch.equal(less[less != labels], noisy[less != labels])
    assert torch.equal(mislabel(labels, 0.0, 1, 0), labels)
    with pytest.raises(DataError, match=r"data\.label_noise.*at least 2 classes, found 1"):
        mislabel(torch.zeros(10, dtype=torch.int64), 0.2, 1, 0)
