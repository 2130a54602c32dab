"""The outcome of the study in a sentence, what is missing, and where it was measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from secateur.study.cells import Cells
from secateur.study.formats import NOT_RUN, Entry, Table
from secateur.study.published import (
    DATASETS,
    NETWORKS,
    SOURCES,
    TITLES,
    published_recipe,
)
from secateur.study.tables import groups_of


class Outcome(NamedTuple):
    """``claim`` is the result, ``proof`` the way of counting."""

    claim: str
    proof: tuple[str, ...]


HIGHER, LEVEL, LOWER, ABSENT = "higher", "level", "lower", "not run"


def outcome(tables: Sequence[Table]) -> Outcome:
    """Count how many measured accuracies are higher than, level with or lower than the printed.

    An accuracy counts once, in the first table and the group closest to the publication. It is
    higher or lower if its entire 95 % interval lies above or below the printed number, else level.
    """
    counted = {source: _standings(tables, source) for source in SOURCES}
    paper, report = (counted[source] for source in SOURCES)
    if all(standing == ABSENT for standing, _ in (*paper, *report)):
        claim = f"None of the {len(paper)} accuracies in the paper is measured yet"
        return Outcome(claim, ())
    changed = sum(recipe != "as published" for standing, recipe in paper if standing != ABSENT)
    proof = [
        f"Of the report's {len(report)} accuracies: {_tally(report)}.",
        "Higher or lower means that the 95 % interval measured here, over seeds and test images, "
        "lies above or below the printed number, which has no interval; otherwise it is level.",
    ]
    if changed:
        proof.append(
            f"{changed} of the paper's {len(paper)} {'was' if changed == 1 else 'were'} measured "
            "with another recipe than the published one, which the tables name; that may explain "
            "a difference."
        )
    return Outcome(
        f"Of the paper's {len(paper)} accuracies, measured here: {_tally(paper)}",
        tuple(proof),
    )


def _standings(tables: Sequence[Table], source: str) -> list[tuple[str, str]]:
    """For each accuracy of ``source``, its standing and the recipe that it was measured with."""
    standings: dict[tuple[str, ...], tuple[str, str]] = {}
    for table in tables:
        keys = [(column.key, str(column.source)) for column in table.columns]
        columns = [keys.index(("top1_percent", name)) for name in (source, "measured")]
        recipe = keys.index(("recipe", "label"))
        for row in table.rows:
            published, measured = (row[index] for index in columns)
            if published.value is not None:
                place = tuple(entry.text for entry in row[:3])
                standing = _standing(published.value, measured)
                standings.setdefault(place, (standing, row[recipe].text))
    return list(standings.values())


def _standing(published: float, measured: Entry) -> str:
    if measured.low is None or measured.high is None:
        return ABSENT
    return HIGHER if measured.low > published else LOWER if measured.high < published else LEVEL


def _tally(standings: list[tuple[str, str]]) -> str:
    count = Counter(standing for standing, _ in standings)
    return ", ".join(
        f"{count[standing]} {standing}"
        for standing in (HIGHER, LEVEL, LOWER, ABSENT)
        if count[standing]
    )


def missing(cells: Cells, tables: Sequence[Table], planned: Iterable[str] = ()) -> list[str]:
    """What a complete study would have and this one lacks, a line each.

    Args:
        cells: All cells.
        tables: Tables of the cells.
        planned: Names of planned cells.
    """
    existing = {cell.name for cell in cells.cells} | set(cells.unread)
    lines = [f"cell {name}: not made" for name in planned if name not in existing]
    lines += [f"cell {name}: not counted, {why}" for name, why in sorted(cells.unread.items())]
    known = set(_published_names())
    lines += [
        f"cell {cell.name}: no publication has {cell.setting.network} on {cell.setting.dataset}"
        for cell in cells.cells
        if (cell.overfitting, cell.setting.dataset, cell.setting.network) not in known
    ]
    for table in tables:
        lines += _missing_in(table)
    lines += [
        f"scan: {TITLES[network]} on {TITLES[dataset]}"
        for dataset in DATASETS
        for network in NETWORKS
        if not _is_scanned(cells, dataset, network)
    ]
    return lines


def _published_names() -> Iterator[tuple[bool, str, str]]:
    for dataset in DATASETS:
        for network in NETWORKS:
            name = published_recipe(dataset, network).network.name
            yield False, dataset, name
            if dataset == "fashionmnist":
                yield True, dataset, name


def _missing_in(table: Table) -> Iterator[str]:
    keys = [(column.key, column.source) for column in table.columns]
    at = keys.index(("top1_percent", "measured"))
    absent: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in table.rows:
        if row[at] == NOT_RUN:
            dataset, network, variant, recipe = (entry.text for entry in row[:4])
            absent[dataset, network, recipe].append(variant)
    for (dataset, network, recipe), variants in absent.items():
        note = "" if recipe == NOT_RUN.text else f" ({recipe})"
        which = dict.fromkeys(variants)
        yield f"{table.name}: {network} on {dataset}{note}: {'; '.join(which)}"


def _is_scanned(cells: Cells, dataset: str, network: str) -> bool:
    return any(
        record.metric == "scan_top1_percent"
        for group in groups_of(cells, dataset, network)
        for cell in group.cells
        for record in cell.records
    )


def provenance(cells: Cells) -> dict[str, dict[str, list[str]]]:
    """From field (processor, threads, versions, ...) to each value and the cells with it."""
    fields: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for cell in cells.cells:
        fields["Seeds"][str(cell.seed)][cell.name] = None
        for record in cell.records:
            versions = ", ".join(f"{k} {v}" for k, v in sorted(record.versions.items()))
            for field, value in (
                ("Processor", record.processor),
                ("Threads", str(record.threads)),
                ("Runtime", record.runtime),
                ("Versions", versions),
                ("Commit", record.commit),
            ):
                fields[field][value][cell.name] = None
    return {
        field: {value: list(names) for value, names in values.items()}
        for field, values in fields.items()
    }
