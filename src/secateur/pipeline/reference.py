"""The stages ``data`` and ``train``: the split, and the reference network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secateur.data import draw, mislabel, normalization
from secateur.pipeline.chain import Chain, changed_fields
from secateur.pipeline.teacher_stage import taught_by_teacher, train_into
from secateur.store import save_tensors, write_json


def data_key(chain: Chain) -> dict[str, Any]:
    """Key of the split."""
    return {"data": changed_fields(chain.recipe.data)} | chain.data_set.key()


def make_data(chain: Chain, folder: Path) -> None:
    """Write the split, the labels to train on, and the facts of the data set."""
    config, images = chain.recipe.data, chain.data_set.source
    training, validation = chain.data_set.split
    if config.images:
        training = training[draw(images.labels[training], config.images, config.split_seed)]
    mean, std = normalization(images.take(training), config.normalization)
    parts = {"training": training, "validation": validation}
    if config.label_noise:
        parts["labels"] = mislabel(
            images.labels[training], config.label_noise, len(images.classes), config.split_seed
        )
    save_tensors(folder / "split.safetensors", parts)
    write_json(
        folder / "data.json",
        {
            "name": config.name,
            "classes": images.classes,
            "shape": list(images.pixels.shape[1:]),
            "training": len(training),
            "validation": len(validation),
            "mean": mean,
            "std": std,
            "fingerprint": images.fingerprint,
        },
    )


def train_key(chain: Chain) -> dict[str, Any]:
    """Key of the reference network."""
    return {
        "network": changed_fields(chain.recipe.network),
        "train": changed_fields(chain.recipe.train),
        "seed": chain.recipe.seed,
    }


def make_reference(chain: Chain, folder: Path) -> None:
    """Train the reference network."""
    network, config = chain.place(chain.fresh_network()), chain.recipe.train
    teacher = taught_by_teacher(chain, config.distill) if config.distill else None
    train_into(chain, folder, network, config, "train", teacher=teacher)
