"""Images from a user's own DataLoaders, and the user's own training step and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from secateur import recipe
from secateur.console import progress
from secateur.data import Images, Preparation
from secateur.errors import DataError
from secateur.training.cpu import fast_layers
from secateur.training.evaluation import correctness
from secateur.training.loop import GLANCE
from secateur.training.trainer import Epoch, Teacher, Trainer, TrainStep, learning_rate

Loader = Iterable[Any]
"""Yields (images, labels): prepared float32 (N, C, R, R), and int64 (N,); again for each epoch."""

Predict = Callable[[Tensor], Tensor]
"""From prepared images, float32 (N, C, R, R), to scores (N, classes)."""

Evaluate = Callable[[Predict, Any], npt.ArrayLike]
"""Tells of each image of a part, as the user passed it, whether a network is right: shape (n,)."""


@dataclass(frozen=True)
class Prepared:
    """Stands in for a :class:`Preparation` where images are prepared already.

    Attributes:
        channels: Of the network's input.
        resolution: Side in pixels of the square input.
        known: What the loader does to pixels, where that is known, for the files that ship.
    """

    channels: int
    resolution: int
    known: Preparation | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The same images, channels last in memory."""
        return images.contiguous(memory_format=torch.channels_last)

    def to_metadata(self) -> dict[str, str]:
        """Of the files that ship; empty where the preparation is not known."""
        return {} if self.known is None else self.known.to_metadata()


@dataclass(frozen=True, eq=False)
class UserLoop:
    """What of training and evaluation is the user's own.

    Attributes:
        loader: Yields training batches; None for the images in memory.
        train_step: From the network, a batch's images and labels to the loss, in place of
            cross-entropy and distillation.
        evaluate: In place of comparing the highest score with the label.
        parts: ``validation`` and ``test`` as the user passed them, for ``evaluate``.
    """

    loader: Loader | None = None
    train_step: TrainStep | None = None
    evaluate: Evaluate | None = None
    parts: dict[str, Any] | None = None

    def right(self, predict: Predict, part: str) -> npt.NDArray[np.bool_]:
        """What the user's evaluation says of a part.

        Raises:
            DataError: It is not one truth value for each image.
        """
        assert self.evaluate is not None
        right = np.asarray(self.evaluate(predict, (self.parts or {}).get(part)))
        if right.ndim != 1 or right.dtype != np.bool_ or not len(right):
            raise DataError(
                "evaluate returns something else", where=part,
                expected="one True or False for each image", found=f"{right.dtype} {right.shape}",
            )  # fmt: skip
        return right


def collect(loader: Loader, classes: tuple[str, ...] | None, where: str) -> Images:
    """Hold what a loader yields in memory, as images with float pixels.

    Args:
        loader: Yields prepared batches; goes through once.
        classes: Names; by default those of the loader's data set, or numbers.
        where: The part's name, for messages.

    Raises:
        DataError: It yields something else.
    """
    images, labels = [], []
    for pixels, targets in batches_of(loader, where):
        images.append(pixels.cpu().contiguous())
        labels.append(targets.cpu())
    if not images:
        raise DataError("no images", where=where)
    joined = torch.cat(labels)
    named = classes or getattr(getattr(loader, "dataset", None), "classes", None)
    names = tuple(map(str, named or range(int(joined.max()) + 1)))
    return Images(torch.cat(images), joined, names)


def batches_of(loader: Loader, where: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a loader's batches, checked.

    Raises:
        DataError: A batch is not images and labels.
    """
    for batch in loader:
        pixels, labels, *_ = (
            (*batch, None, None) if isinstance(batch, tuple | list) else (batch, None)
        )
        fits = isinstance(pixels, Tensor) and pixels.ndim == 4 and pixels.is_floating_point()
        if not fits or not isinstance(labels, Tensor) or labels.shape != (len(pixels),):
            raise DataError(
                "a loader that yields something else", where=where,
                expected="float images (N, C, R, R) and labels (N,)",
                found=", ".join(str(tuple(getattr(x, "shape", ()))) for x in (pixels, labels)),
            )  # fmt: skip
        yield pixels, labels.long()


def normalization_of(loader: Loader) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of a loader's ``Normalize`` transform, if there is one."""
    transform = getattr(getattr(loader, "dataset", None), "transform", None)
    for step in getattr(transform, "transforms", [transform]):
        if type(step).__name__ == "Normalize":
            return tuple(map(float, step.mean)), tuple(map(float, step.std))
    return None


def train_with_loader(
    network: nn.Module,
    loop: UserLoop,
    validation: Images,
    prepare: Preparation,
    config: recipe.Train,
    *,
    seed: int,
    checkpoint: Path,
    teacher: Teacher | None,
    stop: Callable[[list[Epoch]], bool],
    label: str,
) -> tuple[nn.Module, list[Epoch]]:
    """:func:`secateur.training.loop.train` on the batches of a user's loader."""
    assert loop.loader is not None
    steps = len(loop.loader) if isinstance(loop.loader, Sized) else sum(1 for _ in loop.loader)
    trainer = Trainer(network, config, seed, None, teacher, loop.train_step)
    trainer.load(checkpoint)
    device, total = next(network.parameters()).device, steps * config.epochs
    behind = steps * len(trainer.history)
    with progress(label, total, behind) as tick, fast_layers(*trainer.networks):
        while len(trainer.history) < config.epochs:
            if trainer.history and stop(trainer.history):
                break
            epoch, losses = len(trainer.history), 0.0
            network.train()
            for step, (pixels, labels) in enumerate(batches_of(loop.loader, "train")):
                rate = learning_rate(config, epoch * steps + min(step, steps - 1), total)
                images = prepare(pixels.to(device))
                losses += trainer.step(images, labels.to(device), rate, images).item()
                tick.advance()
            seen = validation if epoch + 1 == config.epochs else validation.spread(GLANCE)
            right = int(correctness(trainer.average, seen, prepare).sum())
            trainer.history.append(Epoch(epoch + 1, losses / steps, right, len(seen), 0.0))
            trainer.save(checkpoint)
            tick.advance(0, f"epoch {epoch + 1} validation {100 * right / len(seen):.2f} %")
    return trainer.average.eval(), trainer.history
