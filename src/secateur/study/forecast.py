"""How long cells will take: as long as their like took here, else by a few steps of training."""

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
    """Make what tells seconds for a cell, of one process; None where nothing is known.

    Cells that are done on this processor tell it best: one of the same recipe but for its seed.
    Another is tried: a few steps of training, times all that it trains, as if nothing got smaller.

    Args:
        cells: Done or not.
        out: Where they are.
        device: Where they will run.
    """
    known: dict[str, float] = {}
    for cell in cells:
        if cell.is_done(out):
            spent = seconds_spent(cell.folder(out))
            if spent:
                known[_alike(cell)] = spent

    def tell(cell: Cell) -> float | None:
        return known.get(_alike(cell)) or _by_trial(cell, device)

    return tell


def _alike(cell: Cell) -> str:
    """The same for cells that differ in their seed, or in how many labels are wrong."""
    data = cell.recipe.data.model_copy(update={"label_noise": 0.0})
    return cell.recipe.model_copy(update={"seed": 0, "data": data}).id


def seconds_spent(folder: Path) -> float | None:
    """Seconds that a finished cell's stages took, if on this processor; else None."""
    ours = environment.processor()
    records = read_records(folder / RECORDS)
    spent = [r.value for r in records if r.metric == "seconds" and r.processor == ours]
    return sum(spent) or None


def _by_trial(cell: Cell, device: str) -> float | None:
    recipe = cell.recipe
    if recipe.data.name not in TRAINING_IMAGES:
        return None
    images = round(TRAINING_IMAGES[recipe.data.name] * (1 - recipe.data.validation))
    images = min(images, recipe.data.images or images)
    again = recipe.prune.rounds * recipe.prune.epochs * (OVERFIT_ARMS if cell.overfit else 1)
    seconds = _seconds_an_image(recipe.network, recipe.data.name, recipe.train, device)
    return images * (recipe.train.epochs + again) * seconds


@cache
def _seconds_an_image(network: Network, data: str, config: Train, device: str) -> float:
    size, side, channels = config.batch_size, network.resolution, CHANNELS.get(data, 1)
    built = build_network(network, channels, 10).to(device=device)
    built = built.to(memory_format=torch.channels_last)
    trainer = Trainer(built.train(), config, seed=0)
    images = torch.randn(size, channels, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    for step in range(-1, STEPS):
        if step == 0:  # the first one finds kernels
            start = time.perf_counter()
        trainer.step(images, labels, 1e-6).item()
    return (time.perf_counter() - start) / (STEPS * size)


def in_all(seconds: Iterable[float | None], processes: int) -> float:
    """Seconds until all are done, each process taking the next cell; unknown ones count nothing."""
    free = [0.0] * processes
    for spent in seconds:
        first = free.index(min(free))
        free[first] += spent or 0.0
    return max(free)
