"""A recipe: everything that determines a result; each part belongs to one stage.

A recipe is TOML. Unknown keys, wrong types and values out of range are errors that name the key.
Fields with their default value are omitted from content ids, so that a new field with a neutral
default does not change ids of old results (after open_lth's ``foundations/desc.py``).
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
from secateur.recipe.loading import (
    builtin_recipes,
    load_recipe,
    parse_override,
    parse_recipe,
    read_toml,
)

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
    "parse_override",
    "parse_recipe",
    "read_toml",
]
