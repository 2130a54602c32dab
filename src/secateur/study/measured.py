"""Measured numbers of a group of cells, with bounds and seeds.

Accuracies and their differences have a 95 % interval over seeds and images. Counts, sizes and rates
are means over seeds with minimum and maximum. A latency is the median of the runs' medians, with
the smallest 10th and the largest 90th percentile, on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, median

from secateur.records import Record
from secateur.report import numbers
from secateur.statistics import Interval, across_seeds, drop_across_seeds
from secateur.study.cells import FinishedCell, Group
from secateur.study.formats import NOT_RUN, Entry
from secateur.wording import counted

Form = Callable[[float], str]


def accuracy(group: Group, variant: str) -> Entry:
    """Top-1 in percent on the test images."""
    right = group.right(variant)
    if not right:
        return NOT_RUN
    return _entry(_percent(across_seeds(right[0])), len(right[0]), numbers.fixed)


def difference(group: Group, first: str, second: str) -> Entry:
    """Top-1 of ``first`` minus ``second`` on the same images, in percentage points."""
    pair = group.right(first, second)
    if not pair:
        return NOT_RUN
    drop = drop_across_seeds(pair[0], pair[1])
    return _entry(_percent(drop), len(pair[0]), numbers.signed)


def mean(
    group: Group, variant: str, metric: str, form: Form = numbers.count, scale: float = 1
) -> Entry:
    """Mean over seeds of a recorded number times ``scale``."""
    return _spread([scale * record.value for record in group.values(variant, metric)], form)


def rate(group: Group, variant: str, metric: str) -> Entry:
    """Ratio of the reference to the variant, mean over seeds."""
    pairs = group.pairs(variant, metric)
    return _spread([one.value / other.value for one, other in pairs], numbers.times)


def latency(group: Group, variant: str, machine: str) -> Entry:
    """Milliseconds for one image on ``machine``."""
    records = [r for r in group.values(variant, "latency_ms") if machine_of(r) == machine]
    if not records:
        return NOT_RUN
    lows = [record.value if record.low is None else record.low for record in records]
    highs = [record.value if record.high is None else record.high for record in records]
    value = median(record.value for record in records)
    return _entry(Interval(value, min(lows), max(highs)), len(records), numbers.significant)


def speed_up(group: Group, variant: str, machine: str) -> Entry:
    """Speed-up over the reference on ``machine``, by medians; mean over seeds."""
    pairs = [
        pair
        for pair in group.pairs(variant, "latency_ms")
        if machine_of(pair[0]) == machine_of(pair[1]) == machine
    ]
    return _spread([one.value / other.value for one, other in pairs], numbers.times)


def machine_of(record: Record) -> str:
    """Processor, threads and runtime, which comparable latencies must share."""
    threads = counted(record.threads, "thread")
    return f"{record.processor}; {threads}, {record.runtime}"


def machines(group: Group) -> list[str]:
    """Machines of the group's latencies, in the order of its seeds."""
    records = [r for cell in group.cells for r in cell.records if r.metric == "latency_ms"]
    return list(dict.fromkeys(machine_of(record) for record in records))


def with_reference(group: Group, others: Sequence[Group]) -> Group:
    """Add the reference networks of the same seeds from other groups.

    Overfitting cells may lack the reference network; it is then that of the pruning study in the
    same geometry and preset. Other cells are unchanged.
    """
    same = ("network", "dataset", "preset", "geometry")
    for other in others:
        if all(getattr(other.setting, f) == getattr(group.setting, f) for f in same):
            lent = {cell.seed: cell for cell in other.cells}
            cells = tuple(_lend(cell, lent.get(cell.seed)) for cell in group.cells)
            return replace(group, cells=cells)
    return group


def _lend(cell: FinishedCell, other: FinishedCell | None) -> FinishedCell:
    decided = other.right.get("reference") if other else None
    if other is None or decided is None or "reference" in cell.right:
        return cell
    if any(own.size != decided.size for own in cell.right.values()):
        return cell
    kept = [record for record in cell.records if record.variant != "reference"]
    lent = [record for record in other.records if record.variant == "reference"]
    return replace(cell, records=(*kept, *lent), right=cell.right | {"reference": decided})


def _percent(interval: Interval) -> Interval:
    return Interval(*(100 * bound for bound in interval))


def _spread(values: list[float], form: Form) -> Entry:
    if not values:
        return NOT_RUN
    return _entry(Interval(fmean(values), min(values), max(values)), len(values), form)


def _entry(interval: Interval, seeds: int, form: Form) -> Entry:
    value, low, high = interval
    counted = f"({seeds} seed{'s' * (seeds != 1)})"
    bounds = f"[{form(low)}, {form(high)}] " if form(low) != form(high) else ""
    return Entry(form(value), value, low, high, seeds, bounds + counted)
