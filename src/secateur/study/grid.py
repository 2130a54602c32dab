"""Runs the cells of the study: each a recipe with a seed, in a separate process.

Finished cells are skipped, interrupted ones resumed. Cells of other machines are merged by copying
their folders.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from secateur.environment import choose_device
from secateur.errors import SecateurError, StoreError
from secateur.pipeline import open_chain
from secateur.pipeline.run import RECORDS, complete
from secateur.recipe import Recipe, builtin_recipes, load_recipe, parse_recipe
from secateur.records import Record, write_records
from secateur.remote import Remote
from secateur.store import Store, save_tensors, write_text
from secateur.study.cells import DEMONSTRATION
from secateur.study.demonstration import scan_without_masks
from secateur.study.overfit import run_overfit
from secateur.study.published import DATASETS, NETWORKS, recipe_name
from secateur.training.cpu import keep_freed_memory

NOISES = (0.0, 0.2, 0.4)
"""Fractions of wrong training labels in overfitting cells on an excerpt."""
REMOTE_CELLS = "cells"
CHAIN_TABLES, OVERFIT_TABLES = frozenset({1, 2, 3, 4}), frozenset({5, 6})


@dataclass(frozen=True)
class Cell:
    """One recipe with one seed.

    Attributes:
        name: The name of its folder.
        recipe: The recipe.
        overfit: Whether it is an overfitting cell; otherwise the recipe's chain runs.
    """

    name: str
    recipe: Recipe
    overfit: bool = False

    def folder(self, out: Path) -> Path:
        """Folder of its records."""
        return out / "cells" / self.name

    @property
    def remote_name(self) -> str:
        """Name in an object storage, which keeps the cell of each recipe."""
        return f"{REMOTE_CELLS}/{self.name}-{self.recipe.id}"

    def is_done(self, out: Path) -> bool:
        """Whether its records are complete and of this recipe."""
        folder = self.folder(out)
        if not (folder / RECORDS).is_file():
            return False
        try:
            text = (folder / "recipe.toml").read_text(encoding="utf-8")
            return parse_recipe(text, str(folder)).id == self.recipe.id
        except (OSError, SecateurError):  # of another version or truncated: run again
            return False


def cells(
    networks: Iterable[str] = NETWORKS,
    datasets: Iterable[str] = DATASETS,
    preset: str = "quick",
    seeds: int = 1,
    tables: Iterable[int] = (1, 2, 3, 4, 5, 6),
    sets: list[str] | None = None,
) -> list[Cell]:
    """List the cells of the tables, the first seed first.

    Args:
        networks: Among :data:`NETWORKS`.
        datasets: Among :data:`DATASETS`; overfitting cells use FashionMNIST only, as published.
        preset: ``quick``, ``fast`` or ``paper``.
        seeds: Number of seeds, from 0.
        tables: Numbers of the published tables, 1 to 6.
        sets: ``key=value`` overrides of every recipe.

    Raises:
        RecipeError: A cell has no recipe.
    """
    numbers, listed = set(tables), list[Cell]()
    datasets = list(datasets)
    for seed, network in product(range(seeds), networks):
        if numbers & CHAIN_TABLES:
            for dataset in datasets:
                recipe = load_recipe(recipe_name(network, dataset, preset), sets, seed)
                listed.append(Cell(f"{recipe.name}-seed{seed}", recipe))
        if numbers & OVERFIT_TABLES and "fashionmnist" in datasets:
            listed += _overfit_cells(network, preset, seed, sets or [])
    return listed


def _overfit_cells(network: str, preset: str, seed: int, sets: list[str]) -> Iterator[Cell]:
    every, some = (
        f"overfit-{recipe_name(network, 'fashionmnist', size)}" for size in ("full", preset)
    )
    if some not in builtin_recipes():
        some = f"overfit-{recipe_name(network, 'fashionmnist', 'quick')}"
    for name, noise in [(every, 0.0), *((some, noise) for noise in NOISES)]:
        recipe = load_recipe(name, [f"data.label_noise={noise}", *sets], seed)
        yield Cell(f"{name}-noise{round(100 * noise)}-seed{seed}", recipe, overfit=True)


def run_cell(
    cell: Cell, out: Path, data: Path | None, device: str, storage: str | None = None
) -> list[Record]:
    """Run one cell and write its folder; existing stages are reused.

    Args:
        cell: The cell to run.
        out: Output folder: ``stages/``, shared by cells, and ``cells/NAME/``.
        data: Folder with the data set's files, or None.
        device: See :func:`secateur.environment.choose_device`.
        storage: URL of an object storage that shares stages and cells between machines, or None.

    Raises:
        SecateurError: One line that says what is wrong and what to try.
    """
    keep_freed_memory()
    remote = Remote(storage) if storage else None
    records = _run(cell, out, data, device, remote)
    if remote is not None:
        remote.publish(cell.remote_name, cell.folder(out))
    return records


def _run(
    cell: Cell, out: Path, data: Path | None, device: str, remote: Remote | None
) -> list[Record]:
    folder, store = cell.folder(out), _store(out, wait=True, remote=remote)
    folder.mkdir(parents=True, exist_ok=True)
    # Remove records of an older recipe, which would make an interrupted cell look done.
    for stale in (RECORDS, DEMONSTRATION):
        (folder / stale).unlink(missing_ok=True)
    write_text(folder / "recipe.toml", cell.recipe.to_toml())
    if cell.overfit:
        records, right = run_overfit(cell.recipe, store, data, choose_device(device))
        save_tensors(folder / "right.safetensors", right)
        write_records(folder / RECORDS, records)
        return records
    return complete(open_chain(cell.recipe, store, data, choose_device(device)), folder)


def demonstrate(
    cell: Cell, out: Path, data: Path | None, device: str, storage: str | None = None
) -> None:
    """Scan a finished cell's network with masks that are not applied, and store the records.

    Arguments and errors: see :func:`run_cell`. Cells with such a scan are skipped.
    """
    path = cell.folder(out) / DEMONSTRATION
    if not path.exists():
        store = _store(out, wait=True, remote=Remote(storage) if storage else None)
        chain = open_chain(cell.recipe, store, data, choose_device(device))
        write_records(path, scan_without_masks(chain))


def forget_times(cell: Cell, out: Path, data: Path | None) -> bool:
    """Delete a finished cell's measurements, so that :func:`run_cell` repeats them.

    Networks and files are kept. Cells of other machines, whose stages are missing, are skipped.

    Returns:
        Whether the cell can be measured again.
    """
    store = Store(out / "stages", find_only=True)
    chain = open_chain(cell.recipe, store, data, torch.device("cpu"))
    try:
        chain.stage("quantize")
    except StoreError:
        return False
    for name in ("pack", "bench"):  # the later stage first, so that an interruption is harmless
        with suppress(StoreError):
            shutil.rmtree(chain.stage(name).folder)
    return True


def _store(out: Path, wait: bool, remote: Remote | None = None) -> Store:
    """The stages shared by cells.

    The number of parallel cells determines the threads of each. A study continued with another
    number reuses existing stages; records name the threads of their stage.
    """
    return Store(out / "stages", wait=wait, any_threads=True, remote=remote)
