"""Checks and messages before long work starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from secateur.compression.estimate import Estimate, duration
from secateur.compression.onnx_network import REASON, count, is_file
from secateur.compression.problem import Problem
from secateur.compression.search import METHODS
from secateur.compression.settings import Settings
from secateur.compression.verdict import can_show, guesses, images_needed
from secateur.errors import DataError, RecipeError, StoreError
from secateur.training.evaluation import correctness

GLANCE = 500
"""Number of validation images on which the given network must be better than chance."""

COPIES = 12
"""Disk space of a search, as a multiple of the network's size."""


def check(problem: Problem, settings: Settings, estimate: Estimate, out: Path) -> None:
    """Raise an error if the compression cannot succeed.

    Raises:
        DataError: The network is not better than chance on the validation images.
        StoreError: There is too little space on the disk.
        RecipeError: The time limit is too short for one candidate.
    """
    right = correctness(problem.network, problem.validation.spread(GLANCE), problem.prepare)
    if guesses(right, len(problem.classes)):
        raise DataError(
            "the given network guesses", where=f"{len(right)} validation images",
            expected=f"more than {100 / len(problem.classes):.1f} % right, which is chance",
            found=f"{100 * right.mean():.1f} %",
            remedy="check the weights, the classes' order, --image-size, --mean and --std",
        )  # fmt: skip
    needed = COPIES * 4 * count(problem.network, problem.input_shape)[1]
    free = shutil.disk_usage(out).free
    if free < needed:
        raise StoreError(
            "not enough space", where=out, expected=f"{needed / 1e6:,.0f} MB",
            found=f"{free / 1e6:,.0f} MB", remedy="choose another --out",
        )  # fmt: skip
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
    counted, elements = count(network, problem.input_shape)
    yield (
        f"network  {problem.name}: {elements:,} parameters, {counted / 1e6:,.1f} M MACs, "
        f"input {shape}"
    )
    yield (
        f"images   {len(problem.training):,} to train, {len(problem.validation):,} to validate, "
        f"{problem.test_images:,} to test; {len(problem.classes)} classes"
    )
    yield from (f"         {line}" for line in problem.report)
    yield f"goal     {goal}"
    if not can_show(goal.max_drop, problem.test_images):
        needed = images_needed(goal.max_drop)
        yield (
            f"warning  {problem.test_images:,} test images cannot show {goal.max_drop:g} points; "
            f"about {needed:,} are needed"
        )
    if is_file(network):
        yield f"tries    int8 without training: {REASON}"
        yield f"takes    about {duration(estimate.total(0, 0, 0))}"
        return
    yield (
        f"tries    int8 without training; {len(METHODS)} ways to choose channels; then up to "
        f"{settings.tries} widths, {epochs} epochs each, chosen on validation"
    )
    yield (
        f"takes    about {duration(estimate.total(epochs, settings.tries, len(METHODS)))}"
        + (f", {duration(estimate.within)} at most" if estimate.within else "")
    )
