"""Recipes from files: built-in ones, TOML, overrides, and errors that name the key."""

from __future__ import annotations

import difflib
import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from secateur.disk import read_bytes
from secateur.errors import RecipeError, StoreError
from secateur.recipe.document import Recipe

_MOST_BYTES = 2**20
_MOST_DEPTH = 16
_MOST_FLOAT = 2.0**127


def builtin_recipes() -> list[str]:
    """Names of the recipes inside the package, sorted."""
    folder = resources.files("secateur") / "recipes"
    return sorted(
        item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")
    )


def load_recipe(name: str, overrides: list[str] | None = None, seed: int | None = None) -> Recipe:
    """Load a built-in recipe by name, or one from a TOML file.

    Args:
        name: A name from :func:`builtin_recipes`, or a path that ends in ``.toml``.
        overrides: ``key=value`` pairs such as ``train.epochs=3``; the value is TOML, or a string.
        seed: Replaces the recipe's seed.

    Raises:
        RecipeError: The recipe is unknown, unreadable or invalid.

    Examples:
        >>> recipe = secateur.load_recipe("quickstart", ["train.epochs=3"])
        >>> recipe.network.name, recipe.train.epochs
        ('shufflenet_v2_x1_0', 3)
    """
    if name.endswith(".toml"):
        (_, values), where = read_toml(Path(name)), name
    elif name in builtin_recipes():
        text = (resources.files("secateur") / "recipes" / f"{name}.toml").read_text("utf-8")
        where = f"built-in {name}"
        values = _parse(text, where)
    else:
        raise RecipeError(
            "unknown recipe",
            found=repr(name),
            remedy=_nearest(name, builtin_recipes())
            + "give a path ending in .toml or list the built-in ones with `secateur recipes`",
        )
    for override in overrides or []:
        _override(values, override)
    if seed is not None:
        values["seed"] = seed
    return _validate(values, where)


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a TOML file of at most 1 MiB; return its text and its values.

    Raises:
        RecipeError: It cannot be read, or is not TOML.
    """
    try:
        text = read_bytes(path, _MOST_BYTES).decode()
    except (StoreError, UnicodeDecodeError) as error:
        raise RecipeError("cannot read recipe", where=path, found=error) from error
    return text, _parse(text, str(path))


def parse_recipe(text: str, where: str) -> Recipe:
    """Read a recipe from TOML ``text``; ``where`` names it in errors."""
    return _validate(_parse(text, where), where)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers with too many digits are ValueErrors
        raise RecipeError("not a TOML file", where=where, found=error) from error


def _check_values(value: object, where: str, depth: int = 0) -> None:
    """Check the depth of tables, and that integers have at most 64 bits, as in TOML."""
    if depth > _MOST_DEPTH:
        raise RecipeError("a recipe of too deeply nested tables", where=where)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError("a number out of range", where=where, expected="64 bits at most")
    if isinstance(value, float) and math.isfinite(value) and abs(value) > _MOST_FLOAT:
        raise RecipeError("a number out of range", where=where, expected="a 32-bit float")
    for inner in value.values() if isinstance(value, dict) else ():
        _check_values(inner, where, depth + 1)
    for inner in value if isinstance(value, list) else ():
        _check_values(inner, where, depth + 1)


def _override(values: dict[str, Any], override: str) -> None:
    key, value = parse_override(override)
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError("cannot read --set", where=key, found=f"{parent} is not a table")
    values[leaf] = value


def parse_override(override: str) -> tuple[str, Any]:
    """Parse ``key=value``; a value that is not TOML is a string.

    Raises:
        RecipeError: There is no ``=``, or a number has too many digits.
    """
    key, sign, value = (part.strip() for part in override.partition("="))
    if not sign or not key:
        raise RecipeError("cannot read --set", found=repr(override), expected="key=value")
    try:
        return key, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key, value
    except (ValueError, RecursionError) as error:
        raise RecipeError("cannot read --set", where=key, found=error) from error


def _validate(values: dict[str, Any], where: str) -> Recipe:
    _check_values(values, where)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        path = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            *parents, leaf = path
            remedy = _nearest(leaf, _fields(parents)).removesuffix("; ") or None
            what = "unknown recipe key"
            raise RecipeError(what, where=where, found=".".join(path), remedy=remedy) from None
        # In a union, pydantic adds the branch to the path, which is not part of the recipe.
        key = ".".join(part for part in path if part.isidentifier() or part.isdigit())
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise RecipeError(
            f"recipe key {key} does not fit",
            where=where,
            expected=message[:1].lower() + message[1:],
            found="nothing" if problem["type"] == "missing" else repr(problem["input"])[:80],
        ) from None


def _fields(parents: list[str]) -> list[str]:
    part: type[BaseModel] = Recipe
    for parent in parents:
        annotation = part.model_fields[parent].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        part = annotation
    return list(part.model_fields)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?; " if close else ""
