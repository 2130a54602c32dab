"""Reads and groups the finished cells of the study.

A cell is one run with one seed: a folder ``OUT/cells/NAME/`` with ``recipe.toml``,
``records.jsonl`` and ``right.safetensors``. Cells of other machines are merged by copying their
folders. Cells that cannot be read are listed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from secateur.errors import RecipeError, SecateurError, StoreError
from secateur.recipe import Recipe, content_id, parse_recipe, read_toml
from secateur.records import Record, read_records

OVERFITTED = "overfitted"
"""Prefix of all variants of an overfitting cell."""

DEMONSTRATION = "demonstration.jsonl"
"""Records of a scan without applied masks, made on request."""

CONDITIONS = ("label_noise", "training_images")
"""Keys of ``at`` with the conditions of overfitting."""

PRESETS = ("paper", "accurate", "fast", "quick", "custom")
"""Presets, the closest to the publication first."""


class Setting(NamedTuple):
    """The common setting of cells whose numbers may be averaged.

    Attributes:
        network: Name in the records, for example ``shufflenet_v2_x1_0``.
        dataset: ``cifar10``, ``fashionmnist``, or another one.
        preset: ``paper``, ``fast``, ``quick`` or ``custom``.
        geometry: For example ``28x28 stem=paper``.
        recipe: Content id of the recipe without its seed, name and description.
        conditions: Conditions of overfitting, in the order of ``CONDITIONS``; empty otherwise.
    """

    network: str
    dataset: str
    preset: str
    geometry: str
    recipe: str
    conditions: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class FinishedCell:
    """One finished run with one seed.

    Attributes:
        name: Name of its folder.
        setting: Common setting of its seeds.
        seed: Seed of the recipe.
        overfitting: Whether it is an overfitting cell.
        records: All records.
        right: From variant to a vector (n,), True where a test image is classified correctly.
    """

    name: str
    setting: Setting
    seed: int
    overfitting: bool
    records: tuple[Record, ...]
    right: dict[str, npt.NDArray[np.bool_]]

    def get(self, variant: str, metric: str) -> Record | None:
        """The number of a variant and metric, if measured."""
        return next((r for r in self.records if (r.variant, r.metric) == (variant, metric)), None)


@dataclass(frozen=True)
class Group:
    """Cells that differ only in their seed.

    Attributes:
        setting: Their common setting.
        overfitting: Whether they are overfitting cells.
        cells: By increasing seed.
    """

    setting: Setting
    overfitting: bool
    cells: tuple[FinishedCell, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, increasing."""
        return tuple(cell.seed for cell in self.cells)

    def right(self, *variants: str) -> list[npt.NDArray[np.bool_]]:
        """For each variant, an array (S, n) over the S seeds with all variants.

        Returns:
            Empty if no seed has all variants.
        """
        having = [cell for cell in self.cells if set(variants) <= set(cell.right)]
        if not having:
            return []
        return [np.stack([cell.right[variant] for cell in having]) for variant in variants]

    def values(self, variant: str, metric: str) -> list[Record]:
        """One record for each seed that has it, by increasing seed."""
        records = (cell.get(variant, metric) for cell in self.cells)
        return [record for record in records if record is not None]

    def pairs(self, variant: str, metric: str) -> list[tuple[Record, Record]]:
        """(reference, variant) of each seed with both."""
        both = ((cell.get("reference", metric), cell.get(variant, metric)) for cell in self.cells)
        return [(one, other) for one, other in both if one is not None and other is not None]


@dataclass(frozen=True)
class Cells:
    """All cells of a study.

    Attributes:
        groups: Groups, the closest to the publication first.
        unread: From name of an excluded folder to the reason.
    """

    groups: tuple[Group, ...]
    unread: dict[str, str]

    @property
    def cells(self) -> list[FinishedCell]:
        """All included cells, by name."""
        return sorted((c for group in self.groups for c in group.cells), key=lambda c: c.name)

    def of(
        self, dataset: str, network: str, geometry: str, *, overfitting: bool = False
    ) -> list[Group]:
        """Groups of one network and data set, the closest to the publication first.

        Args:
            dataset: Name in the records.
            network: Name in the records.
            geometry: The published geometry, which is first.
            overfitting: Whether to return overfitting groups instead of others.
        """
        own = [
            group
            for group in self.groups
            if (group.setting.dataset, group.setting.network) == (dataset, network)
            and group.overfitting == overfitting
        ]
        return sorted(own, key=lambda g: (g.setting.geometry != geometry, *_closeness(g)))


def read_cells(out: Path) -> Cells:
    """Read all cells under ``out/cells``.

    Damaged or incomplete cells, and duplicate seeds of a group, are excluded and listed in
    ``unread``.

    Args:
        out: Folder of the study.
    """
    folder = out / "cells"
    cells, unread = [], {}
    for path in sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []:
        try:
            cells.append(_read_cell(path))
        except SecateurError as why:
            unread[path.name] = str(why).replace(f"{path}/", "")
    return Cells(_grouped(cells, unread), unread)


def _read_cell(folder: Path) -> FinishedCell:
    records = read_records(folder / "records.jsonl")
    if (folder / DEMONSTRATION).exists():
        records += read_records(folder / DEMONSTRATION)
    if not records:
        raise StoreError("no records", where="records.jsonl")
    about = records[0]
    shared = {(r.network, r.dataset, r.preset, r.geometry, r.seed) for r in records}
    if len(shared) > 1:
        raise StoreError("records of more than one run", where="records.jsonl")
    _check_single(records)
    overfitting = any(record.variant.startswith(OVERFITTED) for record in records)
    setting = Setting(
        about.network,
        about.dataset,
        about.preset,
        about.geometry,
        _recipe_without_seed(folder / "recipe.toml", about.seed),
        _conditions(records) if overfitting else (),
    )
    right = _read_right(folder / "right.safetensors", records)
    return FinishedCell(folder.name, setting, about.seed, overfitting, tuple(records), right)


SINGLE = (
    *("top1_percent", "parameters", "macs", "size_bytes", "latency_ms"),
    *("train_top1_percent", "train_loss_nats", "test_loss_nats", "loss_gap_nats"),
)
"""Metrics with one number for each variant."""


def _check_single(records: list[Record]) -> None:
    many = Counter((r.variant, r.metric) for r in records if r.metric in SINGLE)
    twice = [" ".join(key) for key, count in many.items() if count > 1]
    if twice:
        raise StoreError("a number is recorded twice", where="records.jsonl", found=twice[0])


def _conditions(records: list[Record]) -> tuple[tuple[str, float], ...]:
    conditions = {
        tuple((key, float(r.at[key])) for key in CONDITIONS if key in r.at)
        for r in records
        if r.variant.startswith(OVERFITTED)
    } - {()}
    if len(conditions) > 1:
        raise StoreError("more than one way to overfit in one cell", where="records.jsonl")
    return conditions.pop() if conditions else ()


def _recipe_without_seed(path: Path, seed: int) -> str:
    text, recipe = read_toml(path)
    if recipe.get("seed", 0) != seed:
        raise StoreError("recipe of another seed", expected=seed, found=recipe.get("seed", 0))
    try:
        return without_seed(parse_recipe(text, path.name))
    except RecipeError:  # of an older version, or not a plain recipe
        no_matter = ("seed", "name", "description", "preset")
        return content_id({key: value for key, value in recipe.items() if key not in no_matter})


def without_seed(recipe: Recipe) -> str:
    """Content id of a recipe without its seed."""
    return recipe.model_copy(update={"seed": 0}).id


def _read_right(path: Path, records: list[Record]) -> dict[str, npt.NDArray[np.bool_]]:
    """Read the decisions of each variant, and check them against the accuracies in the records."""
    try:
        right = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise StoreError("cannot read decisions", where=path.name, found=error) from error
    lengths = {decided.shape for decided in right.values()}
    if any(d.dtype != np.bool_ or d.ndim != 1 or not d.size for d in right.values()):
        raise StoreError("decisions are not boolean vectors", where=path.name)
    if len(lengths) > 1:
        raise StoreError("decisions on different images", where=path.name)
    for record in records:
        source = record.at.get("decoded_to")  # a packed file decides as the file that it decodes to
        if isinstance(source, str) and source in right:
            right.setdefault(record.variant, right[source])
    _check_accuracies(right, records)
    return right


def _check_accuracies(right: dict[str, npt.NDArray[np.bool_]], records: list[Record]) -> None:
    for record in records:
        if record.metric != "top1_percent" or record.variant not in right:
            continue
        decided = 100 * float(right[record.variant].mean())
        if abs(decided - record.value) > 1e-6:
            raise StoreError(
                f"decisions and records of {record.variant} differ",
                expected=f"{record.value:.4f} %",
                found=f"{decided:.4f} %",
            )


def _grouped(cells: Iterable[FinishedCell], unread: dict[str, str]) -> tuple[Group, ...]:
    together: dict[tuple[bool, Setting], list[FinishedCell]] = defaultdict(list)
    for cell in cells:
        same = together[cell.overfitting, cell.setting]
        twin = next((other for other in same if other.seed == cell.seed), None)
        if twin is not None:
            unread[cell.name] = f"the same recipe and seed as {twin.name}"
        elif same and _images(cell) != _images(same[0]):
            unread[cell.name] = f"measured on other test images than {same[0].name}"
        else:
            same.append(cell)
    groups = [
        Group(setting, overfitting, tuple(sorted(same, key=lambda cell: cell.seed)))
        for (overfitting, setting), same in together.items()
    ]
    return tuple(sorted(groups, key=_closeness))


def _images(cell: FinishedCell) -> int:
    return next((decided.size for decided in cell.right.values()), 0)


def _closeness(group: Group) -> tuple[int, float, int, Setting]:
    """Sort key: the published preset first, then more training images, then more seeds."""
    preset = group.setting.preset
    rank = PRESETS.index(preset) if preset in PRESETS else len(PRESETS)
    images = dict(group.setting.conditions).get("training_images", 0)
    return rank, -images, -len(group.seeds), group.setting
