"""Estimates how long cells take: from similar finished cells, else from a few training steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch

from secateur import environment
from secateur.models.build import build_network
from secateur.recipe import Network, Train
from secateur.records import read_records
from secateur.study.grid import RECORDS, Cell
from secateur.training.trainer import Trainer

TRAINING_IMAGES = {"cifar10": 50_000, "fashionmnist": 60_000, "fashionmnist-mini": 8_000}
CHANNELS = {"cifar10": 3}
STEPS = 4
OVERFIT_ARMS = 3
"""Retrained networks of a cell that is made to overfit."""

Forecast = Callable[[Cell], float | None]


def forecast(cells: Iterable[Cell], out: Path, device: str = "cpu") -> Forecast:
    """Return a function that estimates the seconds of a cell in one process, or None if unknown.

    A finished cell of the same recipe with another seed, on the same processor, is the best
    estimate. Otherwise a few training steps are timed and multiplied by the number of steps, at
    the size of the unpruned network.

    Args:
        cells: All cells, finished or not.
        out: Folder of the cells.
        device: Device to train on.
    """
    known: dict[str, float] = {}
    for cell in cells:
        if cell.is_done(out):
            seconds = measured_seconds(cell.folder(out))
            if seconds:
                known[_without_seed(cell)] = seconds

    def estimate(cell: Cell) -> float | None:
        return known.get(_without_seed(cell)) or _from_steps(cell, device)

    return estimate


def _without_seed(cell: Cell) -> str:
    """Content id of the recipe without its seed and label noise, which do not change the time."""
    data = cell.recipe.data.model_copy(update={"label_noise": 0.0})
    return cell.recipe.model_copy(update={"seed": 0, "data": data}).id


def measured_seconds(folder: Path) -> float | None:
    """Seconds that a finished cell's stages took if on this processor, else None."""
    processor = environment.processor()
    records = read_records(folder / RECORDS)
    seconds = [r.value for r in records if r.metric == "seconds" and r.processor == processor]
    return sum(seconds) or None


def _from_steps(cell: Cell, device: str) -> float | None:
    recipe = cell.recipe
    if recipe.data.name not in TRAINING_IMAGES:
        return None
    images = round(TRAINING_IMAGES[recipe.data.name] * (1 - recipe.data.validation))
    images = min(images, recipe.data.images or images)
    retraining = recipe.prune.rounds * recipe.prune.epochs * (OVERFIT_ARMS if cell.overfit else 1)
    seconds = _seconds_per_image(recipe.network, recipe.data.name, recipe.train, device)
    return images * (recipe.train.epochs + retraining) * seconds


@cache
def _seconds_per_image(network: Network, data: str, config: Train, device: str) -> float:
    size, side, channels = config.batch_size, network.resolution, CHANNELS.get(data, 1)
    built = build_network(network, channels, 10).to(device=device)
    built = built.to(memory_format=torch.channels_last)
    trainer = Trainer(built.train(), config, seed=0)
    images = torch.randn(size, channels, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    for step in range(-1, STEPS):
        if step == 0:  # the step before selects kernels
            start = time.perf_counter()
        trainer.step(images, labels, 1e-6).item()
    return (time.perf_counter() - start) / (STEPS * size)


def total_seconds(seconds: Iterable[float | None], processes: int) -> float:
    """Seconds until all cells are done, each process taking the next one; unknown ones count 0."""
    busy_until = [0.0] * processes
    for estimate in seconds:
        first = busy_until.index(min(busy_until))
        busy_until[first] += estimate or 0.0
    return max(busy_until)
