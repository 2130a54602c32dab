"""Ways to prune that a recipe can ask for, taken down the chain to the smaller network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.cost import macs, parameters
from secateur.pipeline import Pipeline
from secateur.recipe import load_recipe
from secateur.store import Store

SETS = ["network.name=mobilenet_v2", "train.epochs=1", "prune.round_to=1"]


def pruned(recipe_file: Path, images: Path, out: Path, *sets: str) -> Pipeline:
    recipe = load_recipe(str(recipe_file), [*SETS, *sets])
    return Pipeline(recipe, Store(out), images, torch.device("cpu"))


@pytest.mark.parametrize(
    "sets",
    [
        ("prune.importance=taylor", "prune.schedule=cubic", "prune.fraction=0.4"),
        ("prune.scope=sensitivity", "prune.retrain=reinit", "prune.fraction=0.4"),
        ("prune.scope=global", "prune.schedule=one-shot", "prune.fraction=0.4"),
    ],
)
def test_a_fraction_of_the_channels_goes(
    recipe_file: Path, image_folder: Path, tmp_path: Path, sets: tuple[str, ...]
) -> None:
    pipeline = pruned(recipe_file, image_folder, tmp_path / "out", *sets)
    smaller = pipeline.load_network(pipeline.remove)
    assert 0.2 < parameters(smaller) / parameters(pipeline.fresh_network()) < 0.7
    scores = smaller(torch.zeros(1, *pipeline.input_shape))
    assert scores.shape == (1, 2)


@pytest.mark.parametrize(("objective", "cost"), [("macs", macs), ("parameters", parameters)])
def test_the_target_is_of_the_trained_network(
    recipe_file: Path, image_folder: Path, tmp_path: Path, objective: str, cost
) -> None:
    sets = (f"prune.objective={objective}", "prune.target=0.5")
    pipeline = pruned(recipe_file, image_folder, tmp_path / "out", *sets)
    shape = (pipeline.input_shape,) if objective == "macs" else ()
    last = pipeline.load_network(pipeline.rounds[-1])
    share = cost(last, *shape) / cost(pipeline.fresh_network(), *shape)
    assert 0.45 < share <= 0.5
