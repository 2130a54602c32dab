"""Estimates how long cells take: from similar finished cells, else from a few training steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur import environment
from secateur.data import Preparation
from secateur.datasets import FACTS
from secateur.models.build import build_network
from secateur.models.teacher import build_teacher
from secateur.recipe import Network, Recipe, Train
from secateur.recipe import Teacher as TeacherRecipe
from secateur.records import read_records
from secateur.study.grid import RECORDS, Cell
from secateur.training.cpu import fast_layers
from secateur.training.trainer import Teacher, Trainer

STEPS = 4
OVERFIT_ARMS = 3
"""Number of retrained networks of an overfitting cell."""

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
    if recipe.data.name not in FACTS:
        return None
    images = round(FACTS[recipe.data.name].training * (1 - recipe.data.validation))
    images = min(images, recipe.data.images or images)
    arms = recipe.prune.rounds * (OVERFIT_ARMS if cell.overfit else 1)
    by_teacher = recipe.prune.distill > 0 and recipe.prune.teacher == "teacher"
    seconds = recipe.train.epochs * _taught_seconds(recipe, recipe.train.distill > 0, device)
    seconds += arms * recipe.prune.epochs * _taught_seconds(recipe, by_teacher, device)
    if recipe.teacher is not None and (recipe.train.distill or by_teacher):
        config = recipe.teacher.train
        seconds += config.epochs * _seconds_per_image(
            recipe.teacher, recipe.data.name, config, None, device
        )
    return images * seconds


def _taught_seconds(recipe: Recipe, by_teacher: bool, device: str) -> float:
    """Mean seconds per image over epochs, including those in the geometry of the start."""
    teacher = recipe.teacher if by_teacher else None
    rest = (recipe.data.name, recipe.train, teacher, device)
    seconds, start = _seconds_per_image(recipe.network, *rest), recipe.train.start
    if start is None:
        return seconds
    geometry = {"stem": start.stem, "resolution": start.resolution}
    changes = {name: value for name, value in geometry.items() if value is not None}
    early = _seconds_per_image(recipe.network.model_copy(update=changes), *rest)
    return start.fraction * early + (1 - start.fraction) * seconds


@cache
def _seconds_per_image(
    model: Network | TeacherRecipe,
    data: str,
    config: Train,
    teacher: TeacherRecipe | None,
    device: str,
) -> float:
    """Training seconds per image, from a few steps on noise."""
    facts = FACTS[data]
    channels, own, classes = facts.channels, facts.side, len(facts.classes)
    side = model.resolution if isinstance(model, Network) else own
    pixels = torch.randint(256, (config.batch_size, channels, own, own), dtype=torch.uint8)
    pixels = pixels.to(device)
    prepare = Preparation((0.5,) * channels, (0.5,) * channels, side)
    taught_by = None
    if teacher is not None:
        network = _build(teacher, prepare.at(own)(pixels), classes).to(device).eval()
        taught_by = Teacher(network, prepare.at(own), 0.5, teacher.train.precision)
    built = _build(model, prepare.at(own)(pixels), classes).to(device)
    built = built.to(memory_format=torch.channels_last).train()
    trainer = Trainer(built, config, seed=0, teacher=taught_by)
    labels = torch.zeros(len(pixels), dtype=torch.int64, device=device)
    with fast_layers(*trainer.networks):
        for step in range(-1, STEPS):
            if step == 0:  # the first step selects kernels
                start = time.perf_counter()
            trainer.step(prepare(pixels), labels, 1e-6, pixels).item()
    return (time.perf_counter() - start) / (STEPS * len(pixels))


def _build(model: Network | TeacherRecipe, images: Tensor, classes: int) -> nn.Module:
    if isinstance(model, Network):
        return build_network(model, images.shape[1], classes)
    return build_teacher(model, images.cpu(), classes)


def total_seconds(seconds: Iterable[float | None], processes: int) -> float:
    """Seconds until all cells are done by parallel processes; unknown durations count as 0."""
    busy_until = [0.0] * processes
    for estimate in seconds:
        first = busy_until.index(min(busy_until))
        busy_until[first] += estimate or 0.0
    return max(busy_until)
