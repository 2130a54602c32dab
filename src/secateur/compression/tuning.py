"""Fine-tunes networks from the given weights, on the user's loop or on images in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from secateur import recipe
from secateur.compression.loaders import train_with_loader
from secateur.compression.problem import Problem
from secateur.compression.settings import Settings
from secateur.pruning.masks import Masks
from secateur.training.batch_norm import follow_batches
from secateur.training.checkpoint import remove_checkpoints
from secateur.training.loop import train
from secateur.training.trainer import Epoch, Teacher

Hopeless = Callable[[Sequence[Epoch]], str]
"""Returns after each epoch the reason to abandon a candidate, or an empty string to continue."""


def fine_tune(
    problem: Problem,
    settings: Settings,
    network: nn.Module,
    config: recipe.Train,
    folder: Path,
    *,
    label: str,
    hopeless: Hopeless | None = None,
    masks: Masks | None = None,
) -> tuple[nn.Module, list[Epoch], str]:
    """Train a network with the given network as its teacher.

    Args:
        problem: The given network and images.
        settings: The teacher's share, and the seed.
        network: On the training device, channels last; trained in place.
        config: Hyperparameters.
        folder: Of the checkpoint, from which an interrupted training continues.
        label: Label of the progress.
        hopeless: Decides whether to stop.
        masks: Weights that stay zero.

    Returns:
        The trained network, its training curve, and why it was stopped early, or an empty string.
    """
    reasons, checkpoint = [""], folder / "checkpoint.safetensors"

    def stop(history: Sequence[Epoch]) -> bool:
        reasons.append(hopeless(history) if hopeless else "")
        return bool(reasons[-1])

    share, seed = settings.tune.distill, settings.seed
    teacher = Teacher(problem.network, problem.prepare, share) if share else None
    tensors = masks.tensors if masks else None
    follow_batches(network)
    if problem.loop.loader is not None:
        network, history = train_with_loader(
            network, problem.loop, problem.validation, problem.prepare, config,
            seed=seed, checkpoint=checkpoint, masks=tensors, teacher=teacher, stop=stop,
            label=label,
        )  # fmt: skip
    else:
        network, history = train(
            network, problem.training, problem.validation, problem.prepare, config,
            seed=seed, checkpoint=checkpoint, masks=tensors, teacher=teacher, stop=stop,
            train_step=problem.loop.train_step, label=label,
        )  # fmt: skip
    remove_checkpoints(checkpoint)
    return network, history, reasons[-1]
