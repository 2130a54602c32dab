"""The published tables 1 to 6 as three, with a column of measured numbers for each quantity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from secateur.recipe import builtin_recipes, load_recipe
from secateur.report import numbers
from secateur.study import measured
from secateur.study.cells import Cells, Group, Setting, without_seed
from secateur.study.formats import NOT_RUN, NOTHING, Column, Entry, Source, Table
from secateur.study.plans import PLANS, REFERENCE, Line, Measurement, Plan, Publication, Quantity
from secateur.study.published import (
    NETWORKS,
    SOURCES,
    TITLES,
    Contradiction,
    PublishedRow,
    contradictions,
    published_recipe,
    recipe_name,
    row_of,
)

MACHINE = "machine"


def make_tables(cells: Cells) -> tuple[Table, Table, Table]:
    """Tables of pruning, quantization and overfitting, from records only."""
    pruning, quantization, overfitting = (_make(plan, cells) for plan in PLANS)
    return pruning, quantization, overfitting


def best_group(
    cells: Cells, dataset: str, network: str, *, overfitting: bool = False
) -> Group | None:
    """The group of a published network and data set closest to the publication, or None."""
    groups = groups_of(cells, dataset, network, overfitting=overfitting)
    return groups[0] if groups else None


def groups_of(
    cells: Cells, dataset: str, network: str, *, overfitting: bool = False
) -> list[Group]:
    """Groups of a published network and data set, the closest to the publication first.

    Args:
        cells: All cells.
        dataset: Published name.
        network: Published name, for example ``shufflenet_v2_x1_0``.
        overfitting: Whether to return overfitting groups, with their references.
    """
    recipe = published_recipe(dataset, network)
    of = partial(cells.of, dataset, recipe.network.name, recipe.geometry)
    if not overfitting:
        return of()
    return [measured.with_reference(group, of()) for group in of(overfitting=True)]


def label_of(setting: Setting, network: str) -> str:
    """How the recipe of a measured group differs from the published one.

    Args:
        setting: Setting of the group.
        network: Published name.
    """
    recipe = published_recipe(setting.dataset, network)
    parts = []
    if setting.geometry != recipe.geometry:
        parts.append(setting.geometry)
    changed = not setting.conditions and _is_changed(setting, network)
    if setting.preset != recipe.preset or changed:
        parts.append(f"{setting.preset} preset{' with changes' if changed else ''}")
    parts += [_condition(*condition) for condition in setting.conditions]
    return ", ".join(parts) or "as published"


def _is_changed(setting: Setting, network: str) -> bool:
    """Whether the recipe differs from the built-in one of its preset."""
    name = recipe_name(network, setting.dataset, setting.preset)
    return name in builtin_recipes() and without_seed(load_recipe(name)) != setting.recipe


def _condition(key: str, value: float) -> str:
    if key == "label_noise":
        return f"{numbers.percent(value)} label noise"
    return f"{numbers.count(value)} {key.replace('_', ' ')}"


def labels_of(groups: list[Group], network: str) -> list[str]:
    """A distinct label for each group."""
    labels = [label_of(group.setting, network) for group in groups]
    return [
        f"{label}, recipe {group.setting.recipe}" if labels.count(label) > 1 else label
        for group, label in zip(groups, labels, strict=True)
    ]


# ---- from a plan to a table


def _make(plan: Plan, cells: Cells) -> Table:
    columns = [Column(*label, "label") for label in _LABELS]
    timed = any(quantity.on_machine for quantity in plan.quantities)
    if timed:
        columns.append(Column(MACHINE, "Latency measured on", "label"))
    columns += [
        Column(quantity.key, quantity.heading, source)
        for quantity in plan.quantities
        for source in _sources(quantity)
    ]
    marks = _Marks()
    rows = [
        row
        for dataset in plan.datasets
        for network in NETWORKS
        for row in _rows(plan, cells, dataset, network, timed, marks)
    ]
    table = Table(plan.name, plan.title, tuple(columns), tuple(rows), marks.footnotes, plan.notes)
    return _on_one_machine(table) if timed else table


def _on_one_machine(table: Table) -> Table:
    """Replace the column of machines by a note if there is only one."""
    at = [column.key for column in table.columns].index(MACHINE)
    machines = {row[at].text for row in table.rows} - {NOTHING.text}
    if len(machines) != 1:
        return table
    note = f"Latencies were measured on {machines.pop()}."
    return replace(table, notes=(*table.notes, note), csv_only=(MACHINE,))


_LABELS = (
    ("dataset", "Data set"),
    ("network", "Network"),
    ("variant", "Variant"),
    ("recipe", "Recipe"),
)


def _sources(quantity: Quantity) -> tuple[Source, ...]:
    return ("paper", "report", "measured") if quantity.published else ("measured",)


class _Marks:
    """Numbers contradictions in the order of a table."""

    def __init__(self) -> None:
        self._all: list[Contradiction] = contradictions()
        self._met: list[Contradiction] = []

    def of(self, row: PublishedRow, column: str) -> tuple[int, ...]:
        matching = [c for c in self._all if row in c.rows and c.column == column]
        self._met += [c for c in matching if c not in self._met]
        return tuple(self._met.index(c) + 1 for c in matching)

    @property
    def footnotes(self) -> dict[int, str]:
        return {number: str(one) for number, one in enumerate(self._met, start=1)}


def _rows(
    plan: Plan, cells: Cells, dataset: str, network: str, timed: bool, marks: _Marks
) -> Iterator[tuple[Entry, ...]]:
    groups = groups_of(cells, dataset, network, overfitting=plan.overfitting)
    place = Entry(TITLES[dataset]), Entry(TITLES[network])
    entries: list[tuple[Group | None, str]] = [
        *zip(groups, labels_of(groups, network), strict=True)
    ]
    for group, label in entries or [(None, NOT_RUN.text)]:
        machines = (measured.machines(group) if timed and group else []) or [""]
        for line in plan.lines:
            if line.published is None and not _has(group, line.measured):
                continue
            publications = [
                _publication(plan, source, dataset, network, line) for source in SOURCES
            ]
            for index, machine in enumerate(machines):
                measurement = Measurement(group, line.measured, machine) if group else None
                yield (
                    *(*place, Entry(line.name), Entry(label)),
                    *([Entry(machine or NOTHING.text)] if timed else []),
                    *_numbers(plan, publications, measurement, marks, repeated=index > 0),
                )


def _has(group: Group | None, variant: str) -> bool:
    return group is not None and bool(group.values(variant, "top1_percent"))


def _publication(
    plan: Plan, source: str, dataset: str, network: str, line: Line
) -> Publication | None:
    row = partial(row_of, plan.tables, source, dataset, network)
    published = row(line.published) if line.published else None
    return Publication(published, row(REFERENCE), row("overfitted")) if published else None


def _numbers(
    plan: Plan,
    publications: list[Publication | None],
    measurement: Measurement | None,
    marks: _Marks,
    *,
    repeated: bool,
) -> Iterator[Entry]:
    """The entries of one row; ``repeated`` where only the machine differs from the row above."""
    for quantity in plan.quantities:
        if quantity.published:
            for publication in publications:
                yield _published(quantity, publication, marks) if publication else NOTHING
        if measurement is None:
            yield NOT_RUN
        elif (repeated and not quantity.on_machine) or (
            quantity.only and measurement.variant not in quantity.only
        ):
            yield NOTHING
        else:
            yield quantity.measured(measurement)


def _published(quantity: Quantity, publication: Publication, marks: _Marks) -> Entry:
    assert quantity.published is not None
    entry = quantity.published(publication)
    marked = marks.of(publication.row, quantity.column) if entry.value else ()
    return replace(entry, marks=marked)
