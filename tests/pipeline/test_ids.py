"""Content ids of recipes and stages are a promise: stored results stay valid across versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from secateur.pipeline import open_chain
from secateur.recipe import builtin_recipes, content_id, load_recipe
from secateur.store import Stage, Store

PINNED = json.loads((Path(__file__).parents[1] / "golden" / "ids.json").read_text())


class UnmadeStore(Store):
    """Makes the data stage, and gives every other stage its id without making it."""

    def stage(
        self,
        name: str,
        says: Mapping[str, Any],
        upstream: Mapping[str, Stage],
        make: Callable[[Path], None],
    ) -> Stage:
        if name == "data":
            return super().stage(name, says, upstream, make)
        key = {"says": dict(says), "upstream": {k: stage.id for k, stage in upstream.items()}}
        identity = content_id({"stage": name.split("-")[0], **key})
        return Stage(name, identity, self.root / f"{name}-{identity}")


def stage_ids(root: Path, *sets: str) -> dict[str, str]:
    """Ids of all stages of the quickstart recipe, with ``sets`` changed."""
    recipe = load_recipe("quickstart", list(sets))
    chain = open_chain(recipe, UnmadeStore(root), None, torch.device("cpu"))
    return {stage.name: stage.id for stage in chain.stages("pack")}


VARIANTS = {
    "quickstart": (),
    "latency": ("prune.objective=latency", "prune.target=0.5"),
    "sensitivity": ("prune.scope=sensitivity", "prune.rounds=2", "prune.distill=0.5"),
    "mixed": ("quantize.bits=mixed", "quantize.epochs=1"),
    "other": ("data.label_noise=0.2", "network.dropout=false", "seed=3", "bench.threads=1"),
}


def test_built_in_recipes_keep_their_ids() -> None:
    ids = {name: load_recipe(name).id for name in builtin_recipes()}
    assert {name: ids[name] for name in PINNED["recipes"]} == PINNED["recipes"]


def test_stages_keep_their_ids(tmp_path: Path) -> None:
    # The data stage's id does not depend on its content, so that the excerpt may be read once.
    ids = {name: stage_ids(tmp_path, *sets) for name, sets in VARIANTS.items()}
    assert ids == PINNED["stages"]
