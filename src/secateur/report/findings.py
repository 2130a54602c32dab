"""Sorts a run's records into single numbers, curves and environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from secateur.errors import StoreError
from secateur.records import Record

K = TypeVar("K")

VARIANTS = ("reference", "pruned", "quantized", "packed")
SINGLE = (
    "top1_percent",
    "top1_drop_points",
    "parameters",
    "nonzero_parameters",
    "macs",
    "size_bytes",
    "latency_ms",
)
"""Metrics with one number for each variant; rates are computed from them."""


class CurvePoint(NamedTuple):
    """One fraction of a scan: accuracy and its paired drop."""

    fraction: float
    sparsity: float | None
    accuracy: Record | None
    drop: Record | None


class EpochPoint(NamedTuple):
    """One epoch of training in a stage."""

    stage: str
    epoch: int
    loss: Record | None
    accuracy: Record | None


@dataclass(frozen=True)
class Findings:
    """The sorted records of one run.

    Attributes:
        about: Any record, for common fields: network, data set, geometry, seed, recipe.
        single: From (variant, metric) to its number.
        network_scan: By increasing fraction.
        layer_scans: From layer to its points by increasing fraction, in the network's order.
        threshold: Fraction chosen by the scan or set by the recipe.
        parity: Agreement of the quantized file with its simulation.
        epochs: In order.
        seconds: Stages with their duration, in order.
        environment: From field to each of its values and the stages with it.
    """

    about: Record
    single: dict[tuple[str, str], Record]
    network_scan: tuple[CurvePoint, ...]
    layer_scans: dict[str, tuple[CurvePoint, ...]]
    threshold: Record | None
    parity: Record | None
    epochs: tuple[EpochPoint, ...]
    seconds: tuple[tuple[str, float], ...]
    environment: dict[str, dict[str, list[str]]]

    @classmethod
    def of(cls, records: list[Record]) -> Findings:
        """Sort ``records``.

        Raises:
            StoreError: There are no records, several recipes, or a duplicate number.
        """
        if not records:
            raise StoreError("no records", expected="those of a run", remedy="run a stage first")
        recipes = sorted({record.recipe_id for record in records})
        if len(recipes) > 1:
            raise StoreError("records of more than one recipe", found=", ".join(recipes))
        scans = _scans(records)
        thresholds = [record for record in records if record.metric == "threshold_fraction"]
        return cls(
            about=records[0],
            single=_unique(
                (r for r in records if r.metric in SINGLE), lambda r: (r.variant, r.metric)
            ),
            network_scan=scans.pop("network", ()),
            layer_scans=scans,
            threshold=thresholds[-1] if thresholds else None,
            parity=next((r for r in records if r.metric == "parity_percent"), None),
            epochs=_epochs(records),
            seconds=tuple((_stage(r), r.value) for r in records if r.metric == "seconds"),
            environment=_environment(records),
        )

    @property
    def variants(self) -> list[str]:
        """Measured variants, in the order of the chain."""
        measured = {variant for variant, _ in self.single}
        return [v for v in VARIANTS if v in measured] + sorted(measured - set(VARIANTS))

    @property
    def tolerance(self) -> float | None:
        """Tolerance of the threshold in points; None if it was set manually."""
        points = self.threshold.at.get("tolerance_points") if self.threshold else None
        return None if points is None else float(points)

    def get(self, variant: str, metric: str) -> Record | None:
        """The number of a variant and metric, if measured."""
        return self.single.get((variant, metric))

    def gain(self, variant: str, metric: str) -> float | None:
        """Ratio of the reference to ``variant`` in ``metric``."""
        reference, other = self.get("reference", metric), self.get(variant, metric)
        if reference is None or other is None or other.value <= 0:
            return None
        return reference.value / other.value


def _unique(records: Iterable[Record], key: Callable[[Record], K]) -> dict[K, Record]:
    unique: dict[K, Record] = {}
    for record in records:
        if key(record) in unique:
            raise StoreError(
                "a number is recorded twice", where=f"{record.variant} {record.metric} {record.at}"
            )
        unique[key(record)] = record
    return unique


def _scans(records: list[Record]) -> dict[str, tuple[CurvePoint, ...]]:
    def place(record: Record) -> tuple[str, float]:
        return str(record.at.get("layer", "network")), _coordinate(record, "fraction")

    accuracy = _unique((r for r in records if r.metric == "scan_top1_percent"), place)
    drop = _unique((r for r in records if r.metric == "scan_drop_points"), place)
    curves: dict[str, list[CurvePoint]] = {}
    for layer, fraction in dict.fromkeys([*accuracy, *drop]):
        pair = accuracy.get((layer, fraction)), drop.get((layer, fraction))
        sparsity = next(r for r in pair if r).at.get("effective_sparsity")
        point = CurvePoint(fraction, None if sparsity is None else float(sparsity), *pair)
        curves.setdefault(layer, []).append(point)
    return {layer: tuple(sorted(points)) for layer, points in curves.items()}


def _epochs(records: list[Record]) -> tuple[EpochPoint, ...]:
    def place(record: Record) -> tuple[str, int]:
        return _stage(record), int(_coordinate(record, "epoch"))

    loss = _unique((r for r in records if r.metric == "train_loss"), place)
    accuracy = _unique((r for r in records if r.metric == "validation_top1_percent"), place)
    places = list(dict.fromkeys([*loss, *accuracy]))
    order = list(dict.fromkeys(stage for stage, _ in places))
    places.sort(key=lambda at: (order.index(at[0]), at[1]))
    return tuple(EpochPoint(*at, loss.get(at), accuracy.get(at)) for at in places)


def _coordinate(record: Record, name: str) -> float:
    try:
        return float(record.at[name])
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"a {record.metric} record is at no {name}", found=record.at or "nothing"
        ) from error


def _stage(record: Record) -> str:
    """The stage of a record."""
    if "stage" in record.at:
        return str(record.at["stage"])
    if record.metric.startswith("bit_scan_"):
        return "scan-bits"
    return "scan" if record.metric.startswith(("scan_", "threshold_")) else "bench"


def _environment(records: list[Record]) -> dict[str, dict[str, list[str]]]:
    """Fields that may differ between stages, because existing stages are reused."""
    measured = {_stage(record) for record in records if record.metric != "seconds"}
    order = list(dict.fromkeys(_stage(record) for record in records))
    fields: dict[str, dict[str, list[str]]] = {}
    for record in records:
        stage = _stage(record)
        if record.metric == "seconds" and stage in measured:
            continue  # ``seconds`` has no runtime of its own
        versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        for name, value in (
            ("Processor", record.processor),
            ("Runtime", record.runtime),
            ("Threads", str(record.threads)),
            ("Versions", versions),
            ("Commit", record.commit),
        ):
            stages = fields.setdefault(name, {}).setdefault(value, [])
            if stage not in stages:
                stages.append(stage)
    for values in fields.values():
        for stages in values.values():
            stages.sort(key=order.index)
    return fields
