"""The table of stages of a recipe's chain, in order.

    data -> [teacher] -> train -> scan -> prune-1 .. prune-R -> remove -> export -> [scan-bits]
         -> quantize -> [quantize-train] -> bench -> pack

Quantization reads the exported float graph, whose tensors are those that are rounded. Only
``bench`` reads the test images; it runs the exported files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from secateur.pipeline.chain import Chain, StageDefinition
from secateur.pipeline.pruning_stages import make_remove, remove_key, round_definitions
from secateur.pipeline.quantization_stages import (
    export_key,
    make_export,
    make_quantize,
    make_quantize_train,
    make_scan_bits,
    quantize_key,
    quantize_train_key,
    scan_bits_key,
)
from secateur.pipeline.reference import data_key, make_data, make_reference, train_key
from secateur.pipeline.sensitivity_stage import make_scan, scan_key
from secateur.pipeline.shipping_stages import bench_key, make_bench, make_pack, pack_key
from secateur.pipeline.teacher_stage import make_teacher, teacher_key
from secateur.recipe import Recipe
from secateur.store import Store


def open_chain(recipe: Recipe, store: Store, data_root: Path | None, device: torch.device) -> Chain:
    """Return the chain of a recipe; stages are made on request.

    Args:
        recipe: The recipe.
        store: Keeps the stages.
        data_root: Folder with the data set's files, or None.
        device: Device for training and evaluation.
    """
    return Chain(recipe, store, data_root, device, stage_definitions(recipe))


def stage_definitions(recipe: Recipe) -> list[StageDefinition]:
    """Return all stages of a recipe, in order."""
    rounds = list(round_definitions(recipe.prune))
    mixed, trained = recipe.quantize.bits == "mixed", recipe.quantize.epochs > 0
    from_bits = {"scan_bits": "scan-bits"} if mixed else {}
    taught = {"teacher": "teacher"} if recipe.train.distill else {}
    table = [
        StageDefinition("data", make_data, data_key),
        *([StageDefinition("teacher", make_teacher, teacher_key, {"data": "data"}, trains=True)]
          if any("teacher" in reads for reads in (taught, rounds[0].reads)) else []),
        StageDefinition(
            "train", make_reference, train_key, {"data": "data", **taught}, trains=True
        ),
        StageDefinition("scan", make_scan, scan_key, {"train": "train"}),
        *rounds,
        StageDefinition(
            "remove", make_remove, remove_key, {"prune": rounds[-1].name}, "prune"
        ),
        StageDefinition("export", make_export, export_key, {"train": "train", "remove": "remove"}),
        StageDefinition(
            "scan-bits", make_scan_bits, scan_bits_key, {"data": "data", "export": "export"},
            on_request=not mixed,
        ),
        StageDefinition(
            "quantize", make_quantize, quantize_key,
            {"data": "data", "export": "export", **from_bits},
        ),
    ]  # fmt: skip
    if trained:
        reads = {"data": "data", "quantize": "quantize"}
        table.append(
            StageDefinition(
                "quantize-train", make_quantize_train, quantize_train_key, reads, "quantize"
            )
        )
    quantized = "quantize-train" if trained else "quantize"
    reads = {"export": "export", "quantize": quantized}
    table.append(StageDefinition("bench", make_bench, bench_key, reads))
    table.append(StageDefinition("pack", make_pack, pack_key, {"bench": "bench"}))
    return table
