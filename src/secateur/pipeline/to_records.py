"""Turns the stored results of the stages into records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from secateur.pipeline.chain import VARIANTS, Chain
from secateur.pipeline.sensitivity_stage import pruning_threshold
from secateur.recipe import Recipe
from secateur.records import Record
from secateur.statistics import Interval, mcnemar, paired_drop, proportion, spread
from secateur.store import Stage


def to_records(chain: Chain, goal: str = "pack") -> list[Record]:
    """Return the records of every stage from ``data`` to ``goal``, in order."""
    records: list[Record] = []
    for stage in chain.stages(goal):
        name, by = stage.name, Recorder(chain.recipe, stage)
        records.append(by("reference", "seconds", stage.manifest["seconds"], at={"stage": name}))
        if name in ("teacher", "train", "quantize-train") or name.startswith("prune-"):
            records += _training(by, name)
        elif name == "scan":
            records += _scan(by, chain)
        elif name == "scan-bits":
            records += _scan_bits(by)
        elif name == "bench":
            records += _bench(by)
        elif name == "pack":
            records += _pack(by, records)
    return records


class Recorder:
    """Makes records with the provenance of one stage.

    Args:
        recipe: The recipe.
        stage: Stage whose manifest has machine, time and versions.
    """

    def __init__(self, recipe: Recipe, stage: Stage) -> None:
        manifest = stage.manifest
        self.stage = stage
        self.common: dict[str, Any] = {
            "network": recipe.network.name,
            "dataset": recipe.data.name,
            "seed": recipe.seed,
            "geometry": recipe.geometry,
            "preset": recipe.preset,
            "recipe_id": recipe.id,
            "runtime": f"torch {manifest['versions']['torch']}",
            "threads": manifest["threads"],
            "processor": manifest["processor"],
            "versions": manifest["versions"],
            "commit": manifest["commit"],
        }

    def __call__(
        self, variant: str, metric: str, value: float | Interval, n: int = 1, **more: Any
    ) -> Record:
        """Make one record; ``more`` are further fields of it."""
        if isinstance(value, Interval):
            more |= {"low": value.low, "high": value.high}
            value = value.value
        fields = self.common | more
        return Record(variant=variant, metric=metric, value=value, n=n, **fields)


def percent(interval: Interval) -> Interval:
    """Convert an interval of fractions to percent or percentage points."""
    return Interval(*(100 * bound for bound in interval))


def _training(by: Recorder, name: str) -> Iterator[Record]:
    variants = {"teacher": "teacher", "train": "reference", "quantize-train": "quantized"}
    variant = variants.get(name, "pruned")
    for epoch in by.stage.json("history.json"):
        at = {"stage": name, "epoch": epoch["epoch"]}
        n = epoch["validation_images"]
        accuracy = percent(proportion(epoch["validation_right"], n))
        yield by(variant, "train_loss", epoch["train_loss"], at=at)
        yield by(variant, "epoch_seconds", epoch["seconds"], at=at)
        yield by(variant, "validation_top1_percent", accuracy, n, at=at)


def _scan(by: Recorder, chain: Chain) -> Iterator[Record]:
    scan = by.stage.json("scan.json")
    for point in scan["network"] + scan["layers"]:
        at = {key: point[key] for key in ("layer", "fraction", "effective_sparsity")}
        accuracy, drop = Interval(*point["accuracy"]), Interval(*point["drop"])
        yield by("reference", "scan_top1_percent", percent(accuracy), point["n"], at=at)
        yield by("reference", "scan_drop_points", percent(drop), point["n"], at=at)
    at = {"tolerance_points": chain.recipe.scan.tolerance}
    if chain.recipe.scan.threshold is not None:
        at = {"by_hand": "yes"}
    yield by("reference", "threshold_fraction", pruning_threshold(chain), at=at)


def _scan_bits(by: Recorder) -> Iterator[Record]:
    for point in by.stage.json("scan_bits.json"):
        at = {key: point[key] for key in ("layer", "bits", "weights")}
        accuracy, drop = Interval(*point["accuracy"]), Interval(*point["drop"])
        yield by("pruned", "bit_scan_top1_percent", percent(accuracy), point["n"], at=at)
        yield by("pruned", "bit_scan_drop_points", percent(drop), point["n"], at=at)
        yield by("pruned", "bit_scan_loss_nats", point["loss"], point["n"], at=at)


def _parity(by: Recorder, parity: dict[str, Any]) -> Record:
    margins = [difference["file_margin"] for difference in parity["differences"]]
    at = {"largest_margin": max(margins, default=0.0), "typical_margin": parity["typical_margin"]}
    agreement = proportion(parity["n"] - len(margins), parity["n"])
    return by("quantized", "parity_percent", percent(agreement), parity["n"], at=at)


def _bench(by: Recorder) -> Iterator[Record]:
    measured = by.stage.json("bench.json")
    right = {v: r.numpy() for v, r in by.stage.tensors("right.safetensors").items()}
    by.common |= {"runtime": measured["runtime"], "threads": measured["threads"]}
    images = len(right["reference"])
    yield _parity(by, measured["parity"])
    reference_bytes = measured["variants"]["reference"]["size_bytes"]
    for variant in VARIANTS:
        numbers, decided = measured["variants"][variant], right[variant]
        accuracy = proportion(int(decided.sum()), images)
        yield by(variant, "top1_percent", percent(accuracy), images)
        if variant != "reference":
            drop = percent(paired_drop(right["reference"], decided))
            at = {"mcnemar_p": mcnemar(right["reference"], decided)}
            yield by(variant, "top1_drop_points", drop, images, at=at)
        for metric in ("parameters", "nonzero_parameters", "macs", "size_bytes"):
            yield by(variant, metric, numbers[metric])
        yield by(variant, "compression_rate", reference_bytes / numbers["size_bytes"])
        times = np.array(numbers["latencies_ms"])
        yield by(variant, "latency_ms", spread(times), len(times))


def _pack(by: Recorder, records: list[Record]) -> Iterator[Record]:
    """Size of the packed file; other results are those of the quantized file."""
    packed = by.stage.json("pack.json")
    at_pack = {"stage": "pack"}
    yield by("packed", "unpack_seconds", packed["unpack_seconds"], at=at_pack)
    yield by("packed", "size_bytes", packed["size_bytes"], at=at_pack)
    for record in records:
        if record.variant == "reference" and record.metric == "size_bytes":
            rate = record.value / packed["size_bytes"]
            yield by("packed", "compression_rate", rate, at=at_pack)
        elif record.variant == "quantized" and record.metric in _SHARED:
            at = record.at | {"decoded_to": "quantized"}
            yield record.model_copy(update={"variant": "packed", "at": at})


_SHARED = (
    "top1_percent", "top1_drop_points", "parameters", "nonzero_parameters", "macs", "latency_ms",
)  # fmt: skip
