"""Random resized crops, RandAugment and mixup."""

from __future__ import annotations

import pytest
import torch

from secateur import recipe
from secateur.data import distort, mix

PIXELS = torch.arange(4 * 3 * 16 * 16).remainder(251).to(torch.uint8).view(4, 3, 16, 16)
LABELS = torch.tensor([0, 1, 2, 1])


def test_nothing_changes_unless_asked_for() -> None:
    config = recipe.Augment(flip=True)
    assert distort(PIXELS, config) is PIXELS
    assert mix(PIXELS, LABELS, 3, config) == (PIXELS, LABELS)


@pytest.mark.parametrize("field", ["resized_crop", "rand_augment"])
def test_each_image_by_its_own_draw(field: str) -> None:
    config = recipe.Augment(**{field: {"resized_crop": 0.3, "rand_augment": 9}[field]})
    same = PIXELS[:1].expand(8, -1, -1, -1)
    torch.manual_seed(0)
    changed = distort(same, config)
    assert changed.shape == same.shape
    assert changed.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in changed}) > 4
    torch.manual_seed(0)
    assert torch.equal(distort(same, config), changed)


def test_mixup_blends_images_and_labels_alike() -> None:
    torch.manual_seed(0)
    black_and_white = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 255.0)]).to(
        torch.uint8
    )
    pixels, targets = mix(black_and_white, torch.tensor([0, 1]), 2, recipe.Augment(mixup=1.0))
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
    torch.testing.assert_close(pixels[:, 0, 0, 0] / 255, targets[:, 1], atol=0.003, rtol=0)
    assert 0 < float(targets[0, 0]) < 1
