"""Checks and messages before long work starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from secateur.compression.estimate import Estimate, duration
from secateur.compression.onnx_network import REASON, count, is_file
from secateur.compression.problem import Problem
from secateur.compression.search import MERGED, METHODS
from secateur.compression.settings import Settings
from secateur.compression.verdict import can_show, images_needed
from secateur.errors import RecipeError, StoreError
from secateur.wording import counted

COPIES = 12
"""Disk space of a search, as a multiple of the network's size."""


def check_space(problem: Problem, out: Path) -> None:
    """Check that the disk has space for the search.

    Raises:
        StoreError: It has too little.
    """
    needed = COPIES * 4 * count(problem.network, problem.input_shape)[1]
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StoreError(
            "not enough space", where=out, expected=f"{needed / 1e6:,.0f} MB",
            found=f"{free / 1e6:,.0f} MB", remedy="choose another --out",
        )  # fmt: skip


def check_time(estimate: Estimate) -> None:
    """Check that the time limit is long enough for one candidate.

    Raises:
        RecipeError: It is too short.
    """
    shortest = 2 * estimate.fixed + estimate.verdict
    if estimate.within is not None and estimate.within < shortest:
        raise RecipeError(
            "the time is too short for one candidate", where="--within",
            expected=f"at least {duration(shortest)}", found=duration(estimate.within),
        )  # fmt: skip


def plan_lines(
    problem: Problem, settings: Settings, estimate: Estimate, epochs: int
) -> Iterator[str]:
    """Yield lines that describe the network, the goal, the search and its estimated time."""
    network, goal = problem.network, settings.goal
    shape = "x".join(map(str, problem.input_shape))
    macs, parameters = count(network, problem.input_shape)
    training, validation = (problem.counts[part] for part in ("training", "validation"))
    yield (
        f"network  {problem.name}: {parameters:,} parameters, {macs / 1e6:,.1f} M MACs, "
        f"input {shape}"
    )
    yield (
        f"images   {sum(training):,} to train, {sum(validation):,} to validate, "
        f"{problem.test_images:,} to test; {counted(len(problem.classes), 'class', 'classes')}"
    )
    fewest = min(training)
    smallest = problem.classes[training.index(fewest)]
    yield f"         fewest to train: {fewest:,} of {smallest!r}"
    yield from (f"         {line}" for line in problem.report)
    yield f"goal     {goal}"
    yield from power_lines(goal.max_drop, problem.accuracy, problem.test_images)
    if is_file(network):
        yield f"tries    int8 without training: {REASON}"
        yield f"takes    about {duration(estimate.total(0, 0, 0))}"
        return
    trained = ", trained with rounding if that loses too much" if epochs else " without training"
    yield f"tries    int8{trained}"
    yield (
        f"         {len(METHODS)} ways to choose channels; then up to "
        f"{counted(settings.tries, 'width')}, {counted(epochs, 'epoch')} each, chosen on validation"
    )
    merged = MERGED if settings.merges else ()
    if merged:
        yield f"         then merged layers, to {', '.join(map(str, merged))} of the latency"
    seconds = estimate.total(epochs, settings.tries, len(METHODS), len(merged))
    yield (
        f"takes    about {duration(seconds)}"
        + (f", {duration(estimate.within)} at most" if estimate.within else "")
    )


def power_lines(max_drop: float, accuracy: float, test_images: int) -> Iterator[str]:
    """Yield a warning if the test has too few images to show the allowed loss.

    Args:
        max_drop: Allowed loss in percentage points.
        accuracy: Accuracy of the given network, in [0, 1].
        test_images: Number of test images.
    """
    needed = images_needed(max_drop, accuracy)
    if test_images < needed:
        verb = "may not" if can_show(max_drop, test_images) else "cannot"
        yield (
            f"warning  {counted(test_images, 'test image')} {verb} show "
            f"{counted(max_drop, 'point')}; about {needed:,} are needed"
        )
