"""Strong augmentation by torchvision's v2 transforms: crops, RandAugment and mixup."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur import recipe


def distort(pixels: Tensor, config: recipe.Augment) -> Tensor:
    """Crop and distort each image at random, by torch's global generator.

    A random crop with at least the fraction ``resized_crop`` of the area is resized to the image's
    size (Szegedy et al. 2015, section 6). Two operations of RandAugment follow (Cubuk et al. 2020).

    Args:
        pixels: uint8, shape (N, C, H, W).
        config: Strength of both.

    Returns:
        uint8, shape (N, C, H, W); the same tensor if both are disabled.
    """
    if not (config.resized_crop or config.rand_augment):
        return pixels
    from torchvision.transforms import v2  # slow to import and rarely needed

    steps: list[torch.nn.Module] = []
    if config.resized_crop:
        size = tuple(pixels.shape[-2:])
        steps.append(v2.RandomResizedCrop(size, scale=(config.resized_crop, 1.0), antialias=True))
    if config.rand_augment:
        steps.append(v2.RandAugment(magnitude=config.rand_augment))
    change = v2.Compose(steps)
    return torch.stack([change(image) for image in pixels])


def mix(
    pixels: Tensor, labels: Tensor, classes: int, config: recipe.Augment
) -> tuple[Tensor, Tensor]:
    """Blend each image and its label with another one of the batch.

    Mixup (Zhang et al. 2018, section 2) with one weight for the batch, drawn by torch's global
    generator.

    Args:
        pixels: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        classes: Number of classes.
        config: ``mixup`` is the alpha of the beta distribution of the weight.

    Returns:
        Pixels, uint8 (N, C, H, W), and class probabilities, float32 (N, classes); the arguments
        unchanged if ``mixup`` is 0.
    """
    if not config.mixup:
        return pixels, labels
    from torchvision.transforms import v2

    mixed, targets = v2.MixUp(alpha=config.mixup, num_classes=classes)(pixels.float(), labels)
    return mixed.round_().to(torch.uint8), targets
