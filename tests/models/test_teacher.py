from __future__ import annotations

import torch

from secateur.models.teacher import build_teacher, whitening
from secateur.recipe import Teacher, Train

CONFIG = Teacher(widths=(8, 12, 16), train=Train(epochs=1, learning_rate=1.0))


def images(channels: int = 3, side: int = 32) -> torch.Tensor:
    """Neighboring pixels and channels are correlated, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, channels, side, side, generator=generator)
    return noise + noise.roll(1, 2) + 0.5 * noise.roll(1, 3) + 0.3 * noise.mean(1, keepdim=True)


def test_whitening_makes_patches_uncorrelated_with_variance_one() -> None:
    photographs = images()
    filters = whitening(photographs)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[:12], -filters[12:])
    values = torch.nn.functional.conv2d(photographs, filters[:12], stride=2)
    covariance = torch.cov(values.transpose(0, 1).reshape(12, -1))
    assert torch.allclose(covariance, torch.eye(12), atol=0.02)


def test_a_constant_image_whitens_to_finite_filters() -> None:
    assert torch.isfinite(whitening(torch.ones(4, 1, 16, 16))).all()


def test_shapes_and_what_is_trained() -> None:
    for channels, side in ((3, 32), (1, 28), (1, 16)):
        network = build_teacher(CONFIG, images(channels, side), classes=10)
        assert network(images(channels, side)[:4]).shape == (4, 10)
        frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
        assert frozen == ["0.weight"]


def test_the_first_filters_start_as_the_identity() -> None:
    network = build_teacher(CONFIG, images(), classes=10)
    second = network[2][4]
    maps = torch.randn(1, 8, 5, 5)
    assert torch.allclose(second(maps), maps)


def test_the_seed_decides() -> None:
    first, again = (build_teacher(CONFIG, images(), 10) for _ in range(2))
    other = build_teacher(CONFIG.model_copy(update={"seed": 1}), images(), 10)
    assert torch.equal(first[-2].weight, again[-2].weight)
    assert not torch.equal(first[-2].weight, other[-2].weight)
