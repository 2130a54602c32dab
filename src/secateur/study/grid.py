"""Runs the cells of the study: each a recipe with a seed, in a separate process.

Finished cells are skipped, interrupted ones resumed. Cells of other machines are merged by copying
their folders.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from queue import Queue

import torch

from secateur.environment import choose_device
from secateur.errors import SecateurError, StoreError
from secateur.pipeline import open_chain
from secateur.pipeline.run import RECORDS, complete
from secateur.recipe import Recipe, builtin_recipes, load_recipe, parse_recipe
from secateur.records import Record, write_records
from secateur.store import Store, save_tensors, write_text
from secateur.study.cells import DEMONSTRATION
from secateur.study.demonstration import scan_without_masks
from secateur.study.overfit import run_overfit
from secateur.study.published import DATASETS, NETWORKS, recipe_name
from secateur.training.cpu import keep_freed_memory

NOISES = (0.0, 0.2, 0.4)
"""Fractions of wrong training labels in overfitting cells on an excerpt."""
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


def run_cell(cell: Cell, out: Path, data: Path | None, device: str) -> list[Record]:
    """Run one cell and write its folder; existing stages are reused.

    Args:
        cell: The cell to run.
        out: Output folder: ``stages/``, shared by cells, and ``cells/NAME/``.
        data: Folder with the data set's files, or None.
        device: See :func:`secateur.environment.choose_device`.

    Raises:
        SecateurError: One line that says what is wrong and what to try.
    """
    keep_freed_memory()
    folder, store = cell.folder(out), _store(out, wait=True)
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


def demonstrate(cell: Cell, out: Path, data: Path | None, device: str) -> None:
    """Scan a finished cell's network with masks that are not applied, and store the records.

    Arguments and errors: see :func:`run_cell`. Cells with such a scan are skipped.
    """
    path = cell.folder(out) / DEMONSTRATION
    if not path.exists():
        store = _store(out, wait=True)
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


def _store(out: Path, **options: bool) -> Store:
    """The stages shared by cells.

    The number of parallel cells determines the threads of each. A study continued with another
    number reuses existing stages; records name the threads of their stage.
    """
    return Store(out / "stages", any_threads=True, **options)


Finished = Callable[[Cell, str | None], None]
"""Called after each cell with its error in one line, or None."""


def run_cells(
    todo: list[Cell],
    out: Path,
    data: Path | None,
    devices: list[str],
    finished: Finished,
) -> None:
    """Run cells in parallel, one process at a time on each of ``devices``.

    A failed cell does not stop others; its error is passed to ``finished``. The output of a cell is
    written to ``cells/NAME/log.txt``.

    Args:
        todo: Cells in the order of their start.
        out: See :func:`run_cell`.
        data: See :func:`run_cell`.
        devices: One entry for each process: ``cpu``, ``cpu`` for two; ``cuda:0``, ``cuda:1``.
        finished: Called when a cell ends.
    """
    free, threads = Queue[str](), max(1, (os.cpu_count() or 1) // len(devices))
    for device in devices:
        free.put(device)

    def run_one(cell: Cell) -> str | None:
        device = free.get()
        try:
            # A separate process isolates memory and crashes.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                return pool.submit(_alone, cell, out, data, device, threads).result()
        except Exception as error:  # a failed cell does not stop others
            return f"{type(error).__name__}: {error}; see {cell.folder(out) / 'log.txt'}"
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as threads_of_cells:
        started = {threads_of_cells.submit(run_one, cell): cell for cell in todo}
        try:
            for future in as_completed(started):
                finished(started[future], future.result())
        except BaseException:  # Ctrl-C: start no more cells
            threads_of_cells.shutdown(wait=False, cancel_futures=True)
            raise


def _alone(cell: Cell, out: Path, data: Path | None, device: str, threads: int) -> str | None:
    """Run a cell in this process, with output to its log; return the error, or None."""
    folder = cell.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(threads)
    try:
        run_cell(cell, out, data, device)
    except SecateurError as error:
        return str(error)
    return None
