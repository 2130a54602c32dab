"""A recipe says everything that decides a result; each part belongs to one stage.

A recipe is TOML. Unknown keys, wrong types and values out of range are refused with one line that
names the key. Fields left at their default are left out of every content id, so that a new field
with a neutral default never renames an old result (after open_lth's ``foundations/desc.py``).
"""

from secateur.recipe.compression_fields import Bench, Prune, Quantize, Removal
from secateur.recipe.document import Recipe, content_id
from secateur.recipe.fields import (
    Augment,
    Count,
    Data,
    Fraction,
    Network,
    Part,
    Positive,
    Scan,
    Start,
    Teacher,
    Train,
)
from secateur.recipe.loading import builtin_recipes, load_recipe, parse_recipe

__all__ = [
    "Augment",
    "Bench",
    "Count",
    "Data",
    "Fraction",
    "Network",
    "Part",
    "Positive",
    "Prune",
    "Quantize",
    "Recipe",
    "Removal",
    "Scan",
    "Start",
    "Teacher",
    "Train",
    "builtin_recipes",
    "content_id",
    "load_recipe",
    "parse_recipe",
]
