"""The reference of recipe fields, generated from the recipe's models.

``secateur recipes --fields`` prints it, and ``docs/recipe.md`` is generated from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from secateur.recipe import Part, Recipe


@dataclass(frozen=True)
class RecipeField:
    """One field of a recipe.

    Attributes:
        key: Key for ``--set``, for example ``train.epochs``.
        values: Type and range in words, for example ``integer >= 1``.
        default: TOML value, or ``required``, or ``none`` if the field is optional.
        description: Description in one line.
    """

    key: str
    values: str
    default: str
    description: str


@dataclass(frozen=True)
class RecipeTable:
    """One TOML table of a recipe: its key (empty for the top level), summary and fields."""

    key: str
    summary: str
    fields: tuple[RecipeField, ...]


def recipe_tables() -> Iterator[RecipeTable]:
    """Yield all tables of a recipe, the top level first.

    Example:
        >>> [table.key for table in recipe_tables()][:3]
        ['', 'data', 'network']
    """
    yield from _tables(Recipe, "", Recipe.__doc__ or "")


def recipe_lines() -> Iterator[str]:
    """Yield the reference as plain text, two lines per field."""
    for table in recipe_tables():
        yield f"[{table.key}]" if table.key else ""
        yield "# " + table.summary.replace("`", "")
        for field in table.fields:
            yield f"{field.key} = {field.default}    ({field.values.replace('`', '')})"
            yield f"    {field.description.replace('`', '')}"
        yield ""


def recipe_markdown() -> str:
    """Return the reference as Markdown."""
    parts = []
    for table in recipe_tables():
        parts.append(f"## `[{table.key}]`" if table.key else "## Top level")
        parts.append(table.summary)
        rows = ["| Field | Values | Default | Description |", "| --- | --- | --- | --- |"]
        for field in table.fields:
            default = field.default if field.default in _WORDS else f"`{field.default}`"
            cells = (f"`{field.key}`", field.values, default, field.description)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


_WORDS = ("required", "none")


def _tables(part: type[BaseModel], prefix: str, summary: str) -> Iterator[RecipeTable]:
    schema = part.model_json_schema()
    fields, inner = [], []
    for name, info in part.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        nested = nested_part(info.annotation)
        if nested is not None:
            inner.append((nested, key))
            continue
        entry = schema["properties"][name]
        fields.append(RecipeField(key, _values(entry), _default(entry, info), entry["description"]))
    yield RecipeTable(prefix, " ".join(summary.replace("``", "`").split()), tuple(fields))
    for nested, key in inner:
        yield from _tables(nested, key, nested.__doc__ or "")


def nested_part(annotation: Any) -> type[BaseModel] | None:
    """The table class of an annotation, which may be optional."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Part):
            return candidate
    return None


def _default(entry: dict[str, Any], info: Any) -> str:
    if info.is_required():
        return "required"
    return "none" if entry["default"] is None else json.dumps(entry["default"])


def _values(entry: dict[str, Any]) -> str:
    """Type and range of a JSON schema in words."""
    if "anyOf" in entry:
        choices = [_values(choice) for choice in entry["anyOf"] if choice.get("type") != "null"]
        return " or ".join(choices)
    if "const" in entry or "enum" in entry:
        return ", ".join(f"`{json.dumps(c)}`" for c in entry.get("enum", [entry.get("const")]))
    kind = str(entry.get("type"))
    if kind == "array":
        items = entry.get("items") or entry["prefixItems"][0]
        return f"list of {_values(items)}"
    words = [{"boolean": "true or false"}.get(kind, kind)]
    for word, sign in _BOUNDS.items():
        if word in entry and entry[word] != _TECHNICAL:
            words.append(f"{sign} {_number(entry[word])}")
    return words[0] + (" " + ", ".join(words[1:]) if words[1:] else "")


def _number(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


_TECHNICAL = 2**31
"""Upper bound of all counts (32 bits), which is not shown."""

_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
