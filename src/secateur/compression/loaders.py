"""Images from a user's DataLoaders, and the user's training step and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
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
from secateur.tracking import log_metrics
from secateur.training.cpu import fast_layers
from secateur.training.evaluation import correctness
from secateur.training.loop import GLANCE
from secateur.training.trainer import Epoch, Teacher, Trainer, TrainStep, learning_rate

Loader = Iterable[Any]
"""Yields (images, labels): prepared float32 (N, C, R, R) and int64 (N,). Iterated once per
epoch."""

Predict = Callable[[Tensor], Tensor]
"""From prepared images, float32 (N, C, R, R), to scores (N, classes)."""

Evaluate = Callable[[Predict, Any], npt.ArrayLike]
"""From a predictor and a part as passed by the user to whether each image is correct: shape
(n,)."""


@dataclass(frozen=True)
class Prepared:
    """Replaces a :class:`Preparation` if images are already prepared.

    Attributes:
        channels: Channels of the network's input.
        resolution: Side in pixels of the square input.
        known: The loader's preparation if it is known, for the metadata of exported files.
    """

    channels: int
    resolution: int
    known: Preparation | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images unchanged, channels last in memory."""
        return images.contiguous(memory_format=torch.channels_last)

    def to_metadata(self) -> dict[str, str]:
        """Metadata of exported files; empty if the preparation is not known."""
        return {} if self.known is None else self.known.to_metadata()


@dataclass(frozen=True, eq=False)
class UserLoop:
    """The user's own loader, training step and evaluation.

    Attributes:
        loader: Yields training batches; None for the images in memory.
        train_step: From the network, images and labels of a batch to the loss; replaces
            cross-entropy and distillation.
        evaluate: Replaces comparing the highest score with the label.
        parts: ``validation`` and ``test`` as the user passed them, for ``evaluate``.
    """

    loader: Loader | None = None
    train_step: TrainStep | None = None
    evaluate: Evaluate | None = None
    parts: dict[str, Any] | None = None

    def right(self, predict: Predict, part: str) -> npt.NDArray[np.bool_]:
        """Evaluate a part by the user's function.

        Raises:
            DataError: The result is not one boolean for each image.
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
    """Read all batches of a loader into memory, as images with float pixels.

    Args:
        loader: Yields prepared batches; iterated once.
        classes: Class names; by default those of the loader's data set, or numbers.
        where: Name of the part, for error messages.

    Raises:
        DataError: The loader yields something else, invalid labels, or NaN.
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
    least, most = int(joined.min()), int(joined.max())
    if least < 0 or most >= len(names):
        raise DataError(
            "labels out of range", where=where, expected=f"0 to {len(names) - 1}",
            found=f"{least} to {most}",
        )  # fmt: skip
    if not all(torch.isfinite(pixels).all() for pixels in images):
        raise DataError("images that hold NaN or infinity", where=where)
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
    masks: Mapping[str, Tensor] | None,
    teacher: Teacher | None,
    stop: Callable[[list[Epoch]], bool],
    label: str,
) -> tuple[nn.Module, list[Epoch]]:
    """:func:`secateur.training.loop.train` on the batches of a user's loader."""
    assert loop.loader is not None
    steps = len(loop.loader) if isinstance(loop.loader, Sized) else sum(1 for _ in loop.loader)
    trainer = Trainer(network, config, seed, masks, teacher, loop.train_step)
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
            evaluated = validation if epoch + 1 == config.epochs else validation.spread(GLANCE)
            right = int(correctness(trainer.average, evaluated, prepare).sum())
            trainer.history.append(Epoch(epoch + 1, losses / steps, right, len(evaluated), 0.0))
            trainer.save(checkpoint)
            log_metrics(label, epoch + 1, trainer.history[-1].metrics)
            tick.advance(0, f"epoch {epoch + 1} validation {100 * right / len(evaluated):.2f} %")
    return trainer.average.eval(), trainer.history
