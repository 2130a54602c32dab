"""Published records belong to the recipes they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.recipe import builtin_recipes, load_recipe
from secateur.records import read_records

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "results").glob("*/records.jsonl"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_published_records_belong_to_the_recipe_they_name(path: Path) -> None:
    assert path.parent.name in builtin_recipes()
    recipe = load_recipe(path.parent.name)
    records = read_records(path)
    assert {record.recipe_id for record in records} == {recipe.id}
    assert {"reference", "pruned", "quantized"} <= {
        record.variant for record in records if record.metric == "top1_percent"
    }
