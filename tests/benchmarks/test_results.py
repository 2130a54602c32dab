"""What README claims is what the records under results/ say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from secateur.recipe import builtin_recipes, load_recipe
from secateur.records import read_records

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "results").glob("*/records.jsonl"))


@pytest.mark.parametrize(
    "script",
    ["tools/publish_results.py", "tools/publish_study.py", "benchmarks/artifact_report.py"],
)
def test_readme_is_made_from_the_records(script: str) -> None:
    spec = importlib.util.spec_from_file_location("script", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert made.readme(text) == text


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_published_records_belong_to_the_recipe_they_name(path: Path) -> None:
    assert path.parent.name in builtin_recipes()
    recipe = load_recipe(path.parent.name)
    records = read_records(path)
    assert {record.recipe_id for record in records} == {recipe.id}
    assert {"reference", "pruned", "quantized"} <= {
        record.variant for record in records if record.metric == "top1_percent"
    }
