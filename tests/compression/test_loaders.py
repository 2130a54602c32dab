"""A user's own DataLoaders, training step and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from secateur import recipe
from secateur.compression.loaders import (
    Prepared,
    UserLoop,
    collect,
    normalization_of,
    train_with_loader,
)
from secateur.compression.parts import kind_of, loaders
from secateur.errors import DataError, RecipeError
from secateur.training.trainer import Teacher


def loader(images: int, size: int = 8, batch: int = 10) -> DataLoader:
    """Bright images are of class 1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 2
    pixels = torch.randn(images, 1, size, size, generator=generator) + labels.view(-1, 1, 1, 1)
    return DataLoader(TensorDataset(pixels, labels), batch_size=batch)


def network() -> nn.Module:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2)
    )


def tuned(folder: Path, loop: UserLoop, **more: object) -> tuple[nn.Module, list]:
    config = recipe.Train(epochs=3, learning_rate=0.1)
    return train_with_loader(
        network(), loop, collect(loader(40), None, "validation"), Prepared(1, 8), config, seed=0,
        checkpoint=folder / "checkpoint.safetensors", label="test",
        **({"masks": None, "teacher": None, "stop": lambda history: False} | more),
    )  # fmt: skip


def test_trains_on_the_loaders_batches(tmp_path: Path) -> None:
    _, history = tuned(tmp_path, UserLoop(loader(100)))
    assert len(history) == 3
    assert history[-1].validation_right == history[-1].validation_images == 40
    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.parametrize(
    ("label", "pixel", "message"),
    [
        (-1, 0.0, r"labels out of range \(test\): expected 0 to 1, found -1 to 1"),
        (2, 0.0, r"labels out of range \(test\): expected 0 to 1, found 0 to 2"),
        (1, float("nan"), r"images that hold NaN or infinity \(test\)"),
        (1, float("-inf"), "images that hold NaN or infinity"),
    ],
)
def test_labels_and_pixels_out_of_range_are_refused(label: int, pixel: float, message: str) -> None:
    images, labels = torch.zeros(20, 1, 8, 8), torch.arange(20) % 2
    labels[19], images[19, 0, 7, 7] = label, pixel
    wrong = DataLoader(TensorDataset(images, labels), batch_size=10)
    with pytest.raises(DataError, match=message):
        collect(wrong, ("dark", "bright"), "test")


def test_stops_when_told(tmp_path: Path) -> None:
    _, history = tuned(tmp_path, UserLoop(loader(100)), stop=lambda history: len(history) == 2)
    assert len(history) == 2


def test_own_training_step_gives_the_loss(tmp_path: Path) -> None:
    calls = []

    def step(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        calls.append(len(images))
        return nn.functional.cross_entropy(net(images), 1 - labels)

    _, history = tuned(tmp_path, UserLoop(loader(100), step))
    assert calls == [10] * 30
    assert history[-1].validation_right == 0  # it learned the opposite


def test_teacher_sees_the_prepared_images(tmp_path: Path) -> None:
    contrary = network()
    with torch.no_grad():
        contrary[5].weight.zero_()
        contrary[5].bias.copy_(torch.tensor([9.0, -9.0]))
    teacher = Teacher(contrary.eval(), Prepared(1, 8), 1.0)
    student, _ = tuned(tmp_path, UserLoop(loader(100)), teacher=teacher)
    images, _ = next(iter(loader(40)))
    assert (student(images).argmax(1) == 0).all()


def test_own_evaluation() -> None:
    loop = UserLoop(
        evaluate=lambda predict, part: predict(part).argmax(1) == 1, parts={"test": torch.eye(2)}
    )
    assert loop.right(lambda images: images, "test").tolist() == [False, True]


def test_evaluation_that_returns_a_share_is_refused() -> None:
    loop = UserLoop(evaluate=lambda predict, part: 0.93)
    with pytest.raises(DataError, match="one True or False for each image, found float64"):
        loop.right(lambda images: images, "test")


def test_collects_every_batch() -> None:
    images = collect(loader(25), ("dark", "bright"), "test")
    assert images.pixels.shape == (25, 1, 8, 8)
    assert images.labels.tolist() == (np.arange(25) % 2).tolist()


@pytest.mark.parametrize(
    "batch", [torch.zeros(2, 1, 4, 4), (torch.zeros(2, 4), torch.zeros(2)), ()]
)
def test_batches_of_another_kind_are_refused(batch: object) -> None:
    with pytest.raises(DataError, match=r"yields something else .train"):
        collect([batch], None, "train")


def test_no_images() -> None:
    with pytest.raises(DataError, match=r"no images .test"):
        collect([], None, "test")


def test_normalization_is_read_from_the_transforms() -> None:
    data = TensorDataset(torch.zeros(1))
    data.transform = v2.Compose([v2.ToImage(), v2.Normalize([0.5], [0.25])])
    assert normalization_of(DataLoader(data)) == ((0.5,), (0.25,))
    assert normalization_of(loader(4)) is None


def test_parts_of_loaders() -> None:
    loop = UserLoop(loader(30))
    parts, prepare = loaders(loop, {"validation": loader(20), "test": loader(10)}, None)
    training, validation = parts.read()
    assert (len(training), len(validation), parts.test_images) == (30, 20, 10)
    assert parts.counts == {"training": [15, 15], "validation": [10, 10]}
    assert (prepare.channels, prepare.resolution, prepare.to_metadata()) == (1, 8, {})
    assert len(parts.test()) == 10


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ({"train": None, "validation": None, "test": None}, "none"),
        ({"train": "images", "validation": None, "test": None}, "one folder"),
        ({"train": "a", "validation": "b", "test": "c"}, "three folders"),
        ({"train": [], "validation": [], "test": []}, "loaders"),
    ],
)
def test_kinds_of_parts(named: dict, kind: str) -> None:
    assert kind_of(named) == kind


@pytest.mark.parametrize(
    "named",
    [
        {"train": [], "validation": None, "test": None},
        {"train": "a", "validation": "b", "test": None},
        {"train": [], "validation": "b", "test": "c"},
    ],
)
def test_parts_that_do_not_go_together(named: dict) -> None:
    with pytest.raises(RecipeError, match="train, validation, test"):
        kind_of(named)
