"""Made-up cells of the study, as finished runs leave them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from secateur.recipe import Recipe, load_recipe
from secateur.records import Record, write_records

CPU = "Example CPU, 2 cores, avx2"
IMAGES = 400
ACCURACY = {"reference": 0.92, "pruned": 0.905, "quantized": 0.9}
OVERFITTED = {
    "overfitted": 0.85,
    "overfitted-pruned": 0.87,
    "overfitted-random": 0.86,
    "overfitted-dense": 0.855,
}
PARAMETERS = {"reference": 2_000_000, "pruned": 800_000, "quantized": 800_000}
CONDITIONS: dict[str, float | str] = {"label_noise": 0.2, "training_images": 5000, "epochs": 50}


def a_cell(
    out: Path,
    recipe: str = "mobilenet_v2-fashionmnist-paper",
    seed: int = 0,
    *,
    name: str = "",
    overrides: Sequence[str] = (),
    processor: str = CPU,
    commit: str = "abcdef012345",
    demonstration: bool = False,
    overfitting: bool = False,
    images: int = IMAGES,
) -> Path:
    """Write one cell and return its folder."""
    loaded = load_recipe(recipe, list(overrides), seed)
    kind = "overfit-" if overfitting else ""
    folder = out / "cells" / (name or f"{kind}{recipe}-{seed}")
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(loaded.to_toml(), encoding="utf-8")
    right = decisions(OVERFITTED if overfitting else ACCURACY, seed, images)
    common = {"recipe": loaded, "processor": processor, "commit": commit}
    if overfitting:
        records = list(_overfitting(right, common))
    else:
        records = [*_bench(right, common), *_scan("network", 1.0, common)]
    if demonstration:
        records += _scan("network, masks not in force", 0.0, common)
    write_records(folder / "records.jsonl", records)
    save_file(right, folder / "right.safetensors")
    return folder


def decisions(accuracy: dict[str, float], seed: int, images: int) -> dict[str, np.ndarray]:
    """Right answers on the same images, which are as hard for every seed."""
    hard, noise = np.random.default_rng(0).random(images), np.random.default_rng(seed + 1)
    return {v: hard + 0.02 * noise.normal(size=images) < a for v, a in accuracy.items()}


def a_record(common: dict, variant: str, metric: str, value: float, n: int = 1, **more) -> Record:
    recipe: Recipe = common["recipe"]
    return Record(
        network=recipe.network.name,
        dataset=recipe.data.name,
        variant=variant,
        metric=metric,
        value=value,
        n=n,
        seed=recipe.seed,
        geometry=recipe.geometry,
        preset=recipe.preset,
        recipe_id=recipe.id,
        runtime="onnxruntime 1.32.0",
        threads=2,
        processor=common["processor"],
        versions={"python": "3.13.1", "torch": "2.15.0"},
        commit=common["commit"],
        **more,
    )


def _bench(right: dict[str, np.ndarray], common: dict) -> Iterator[Record]:
    seed = common["recipe"].seed
    for variant, decided in right.items():
        size = PARAMETERS[variant] * (1 if variant == "quantized" else 4) + 1000 * seed
        median = {"reference": 1.0, "pruned": 0.5, "quantized": 0.25}[variant] * (1 + 0.1 * seed)
        yield a_record(common, variant, "top1_percent", 100 * float(decided.mean()), decided.size)
        yield a_record(common, variant, "parameters", PARAMETERS[variant] + 10 * seed)
        yield a_record(common, variant, "size_bytes", size)
        bounds = {"low": 0.9 * median, "high": 1.2 * median}
        yield a_record(common, variant, "latency_ms", median, 200, **bounds)
    same: dict[str, float | str] = {"decoded_to": "quantized"}
    accuracy = 100 * float(right["quantized"].mean())
    yield a_record(common, "packed", "top1_percent", accuracy, IMAGES, at=same)
    yield a_record(common, "packed", "parameters", PARAMETERS["quantized"] + 10 * seed, at=same)
    yield a_record(common, "packed", "size_bytes", 200_000, at={"stage": "pack"})
    yield a_record(common, "packed", "latency_ms", 0.25 * (1 + 0.1 * seed), 200, at=same)


def _scan(layer: str, steep: float, common: dict) -> Iterator[Record]:
    for nth, fraction in enumerate((0.0, 0.3, 0.6, 0.9)):
        value = 91.0 + 0.2 * common["recipe"].seed - steep * 8 * nth**2
        at: dict[str, float | str] = {"layer": layer, "fraction": fraction}
        bounds = {"low": value - 0.5, "high": value + 0.5}
        yield a_record(common, "reference", "scan_top1_percent", value, 12_000, at=at, **bounds)


def _overfitting(right: dict[str, np.ndarray], common: dict) -> Iterator[Record]:
    for variant, decided in right.items():
        for metric, value in (
            ("top1_percent", 100 * float(decided.mean())),
            ("parameters", 2_000_000.0 if variant == "overfitted" else 1_500_000.0),
            ("train_top1_percent", 99.5),
            ("train_loss_nats", 0.01),
            ("test_loss_nats", 0.91),
            ("loss_gap_nats", 0.9),
        ):
            yield a_record(common, variant, metric, value, decided.size, at=CONDITIONS)


TIMES = ("seconds", "epoch_seconds", "latency_ms", "unpack_seconds")


def timeless(records: list[Record]) -> list[str]:
    """Everything but times, and the packed file, which says how long it took.

    And but for the commit, which somebody may make while the tests run.
    """
    kept = [r for r in records if r.metric not in TIMES and r.at.get("stage") != "pack"]
    return [record.model_copy(update={"commit": ""}).to_json() for record in kept]
