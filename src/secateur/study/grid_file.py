"""``secateur grid``: a TOML file that names recipes and lists of values, and the cells it means.

    recipes = ["quickstart"]

    [values]
    seed = [0, 1, 2]
    network.name = ["mobilenet_v2", "shufflenet_v2_x1_0"]
    prune.fraction = [0.5, 0.7]

    [set]                       # the same for every cell
    train.epochs = 10

The cells are all combinations: here 1 * 3 * 2 * 2.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ConfigDict, Field, ValidationError
from rich.table import Table

from secateur import console
from secateur.disk import read_bytes
from secateur.errors import RecipeError, StoreError
from secateur.pipeline.run import RECORDS
from secateur.recipe import Part, load_recipe
from secateur.records import Record, read_records
from secateur.report import numbers
from secateur.study.grid import Cell

_MOST_BYTES = 2**20
_MOST_CELLS = 100_000


class GridFile(Part):
    """What a grid's file holds.

    Attributes:
        recipes: Built-in names, or paths of .toml files.
        values: Recipe keys to lists of values, as nested tables or with dots.
        set: Recipe keys to one value for every cell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipes: tuple[str, ...] = Field(min_length=1)
    values: dict[str, Any] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)


def read_grid(path: Path, sets: Sequence[str] = ()) -> list[Cell]:
    """List the cells of a grid's file, those of the first values first.

    Args:
        path: A TOML file, see above.
        sets: ``key=value`` overrides of every recipe.

    Raises:
        RecipeError: The file, or the recipe of a cell, does not fit.
    """
    grid = _read(path)
    axes = dict(_leaves(grid.values))
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise RecipeError("grid value does not fit", where=key, expected="a list of values")
    every = [*(_assignment(*pair) for pair in _leaves(grid.set)), *sets]
    count = len(grid.recipes)
    for values in axes.values():
        count *= len(values)
    if count > _MOST_CELLS:
        raise RecipeError("too many cells", where=path, expected=f"{_MOST_CELLS:,}", found=count)
    cells: dict[str, Cell] = {}
    for name, chosen in product(grid.recipes, product(*axes.values())):
        pairs = list(zip(axes, chosen, strict=True))
        recipe = load_recipe(name, [*every, *(_assignment(*pair) for pair in pairs)])
        cell = Cell(_name(recipe.name, pairs), recipe)
        other = cells.setdefault(cell.name, cell)
        if other is not cell:
            raise RecipeError("two cells of one name", where=path, found=cell.name)
    return list(cells.values())


def _read(path: Path) -> GridFile:
    try:
        values = tomllib.loads(read_bytes(path, _MOST_BYTES).decode())
        return GridFile.model_validate(values)
    except StoreError as error:
        raise RecipeError(str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key}: {first['msg']}"
        raise RecipeError("grid file does not fit", where=path, found=reason) from None
    except (ValueError, RecursionError) as error:
        raise RecipeError("not a TOML file", where=path, found=error) from error


def _leaves(table: dict[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and their values, of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{head}{key}.")
        else:
            yield f"{head}{key}", value


def _assignment(key: str, value: object) -> str:
    """``key=value`` as --set takes it."""
    return f"{key}={tomli_w.dumps({'v': value}).removeprefix('v = ').strip()}"


def _name(recipe: str, pairs: Sequence[tuple[str, object]]) -> str:
    """The recipe's name with each value: ``quickstart-seed0-fraction0.5``."""
    parts = (f"{key.rpartition('.')[2]}{value}" for key, value in pairs)
    return "-".join([recipe, *(re.sub(r"[^A-Za-z0-9._-]+", "_", part)[:40] for part in parts)])


_COLUMNS = (
    ("reference, %", "reference", "top1_percent"),
    ("packed, %", "packed", "top1_percent"),
    ("parameters", "pruned", "parameters"),
    ("bytes", "packed", "size_bytes"),
)


def outcome_table(cells: Sequence[Cell], out: Path) -> Table:
    """A row for each cell with the numbers that its records have."""
    rows = [(cell.name, *_row(cell, out)) for cell in cells]
    return console.table(("cell", *(heading for heading, *_ in _COLUMNS)), rows)


def _row(cell: Cell, out: Path) -> Iterator[str]:
    records: dict[tuple[str, str], Record] = {}
    if cell.is_done(out):
        for one in read_records(cell.folder(out) / RECORDS):
            records.setdefault((one.variant, one.metric), one)
    for _, variant, metric in _COLUMNS:
        record = records.get((variant, metric))
        written = numbers.fixed if metric.endswith("percent") else numbers.count
        yield "" if record is None else written(record.value)
