"""The training loop; training can be interrupted at any time and resumed with the same result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur import recipe
from secateur.console import progress
from secateur.data import Images, Preparation
from secateur.models.build import with_stem
from secateur.tracking import log_metrics
from secateur.training import ranks
from secateur.training.cpu import fast_layers
from secateur.training.evaluation import correctness
from secateur.training.synchronized import synchronized
from secateur.training.trainer import Epoch, Teacher, Trainer, TrainStep

GLANCE = 2000
"""Number of validation images evaluated after each epoch; the last epoch uses all."""


def _done(history: list[Epoch], config: recipe.Train, images: int) -> bool:
    """Whether training has ended, from the history only, for resumed trainings."""
    if not history:
        return False
    return len(history) >= config.epochs or _reached(history[-1].train_right, config, images)


def _reached(right: int | None, config: recipe.Train, images: int) -> bool:
    if right is None or config.until is None:
        return False
    return 100 * right >= config.until * images


@torch.enable_grad()
def train(
    network: nn.Module,
    training: Images,
    validation: Images,
    prepare: Preparation,
    config: recipe.Train,
    *,
    seed: int,
    checkpoint: Path,
    masks: Mapping[str, Tensor] | None = None,
    teacher: Teacher | None = None,
    built_from: recipe.Network | None = None,
    stop: Callable[[Sequence[Epoch]], bool] | None = None,
    train_step: TrainStep | None = None,
    label: str = "train",
) -> tuple[nn.Module, list[Epoch]]:
    """Train ``network`` in place, starting from ``checkpoint`` if it exists.

    Args:
        network: On the training device, channels last.
        training: Images on the same device.
        validation: Images on the same device, for the training curve only.
        prepare: Maps stored pixels to the network's input.
        config: Hyperparameters.
        seed: The same seed gives the same result on the same machine, also if resumed.
        checkpoint: Written after each epoch.
        masks: See :class:`Trainer`.
        teacher: See :class:`Trainer`.
        built_from: Configuration of ``network``, for the stem of ``config.start``.
        stop: Called after each epoch but the last; True stops training.
        train_step: See :class:`Trainer`.
        label: Label of the progress.

    Returns:
        The trained network in inference mode (the average if ``config.ema`` is set), and its
        training curve.

    Raises:
        TrainingError: The loss is no longer finite.
    """
    trainer = Trainer(network, config, seed, masks, teacher, train_step)
    trainer.load(checkpoint)
    steps = len(training) // min(config.batch_size, len(training))
    behind = steps * len(trainer.history)
    with (
        progress(label, steps * config.epochs, behind) as tick,
        fast_layers(*trainer.networks),
        synchronized(*(trainer.networks if config.shards == 1 else ())),
    ):
        while not _done(trainer.history, config, len(training)):
            if trainer.history and ranks.agreed(stop is not None and stop(trainer.history)):
                break
            note = _epoch(trainer, training, validation, built_from, prepare, tick)
            trainer.save(checkpoint)
            log_metrics(label, len(trainer.history), trainer.history[-1].metrics)
            tick.advance(0, note)
    return trainer.average.eval(), trainer.history


def _epoch(
    trainer: Trainer,
    training: Images,
    validation: Images,
    built_from: recipe.Network | None,
    prepare: Preparation,
    tick: object,
) -> str:
    """Train for one epoch, append the result to the history, and return it in words."""
    start, config, epoch = time.monotonic(), trainer.config, len(trainer.history) + 1
    with _geometry_of(epoch, trainer, built_from, prepare) as prepare:
        loss, fitted = trainer.run_epoch(training, prepare, tick), None
        if config.until is not None:
            fitted = _right(trainer.average, training, prepare)
        last = epoch == config.epochs or _reached(fitted, config, len(training))
        evaluated = validation if last else validation.spread(GLANCE)
        right = _right(trainer.average, evaluated, prepare)
    seconds = time.monotonic() - start
    trainer.history.append(Epoch(epoch, loss, right, len(evaluated), seconds, fitted))
    return f"epoch {epoch} loss {loss:.3f} validation {100 * right / len(evaluated):.2f} %"


def _right(network: nn.Module, images: Images, prepare: Preparation) -> int:
    """How many images are classified right; each process looks at its part of them."""
    if ranks.world() == 1:
        return int(correctness(network, images, prepare).sum())
    own = images.take(
        torch.arange(ranks.rank(), len(images), ranks.world()).to(images.labels.device)
    )
    right = torch.tensor(correctness(network, own, prepare).sum(), device=images.labels.device)
    ranks.add_up(right)
    return int(right)


@contextmanager
def _geometry_of(
    epoch: int, trainer: Trainer, built_from: recipe.Network | None, prepare: Preparation
) -> Iterator[Preparation]:
    """Set networks to the geometry of a 1-based epoch; return the image preparation for it."""
    first = trainer.config.start
    if first is None or epoch > round(first.fraction * trainer.config.epochs):
        yield prepare
        return
    with ExitStack() as stack:
        for network in trainer.networks:
            if built_from is not None and first.stem is not None:
                stack.enter_context(with_stem(network, built_from, first.stem))
        yield prepare.at(first.resolution or prepare.resolution)
