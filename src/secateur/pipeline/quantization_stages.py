"""The stages ``export``, ``scan-bits``, ``quantize`` and ``quantize-train``: networks as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch

from secateur.console import progress
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import Graph, read_model, write_model
from secateur.pipeline.chain import Chain, changed_fields
from secateur.pipeline.teacher_stage import train_into
from secateur.pruning.masks import Masks
from secateur.quantization.aware import Trainable
from secateur.quantization.bits import BitPoint, scan_bits
from secateur.quantization.post_training import Resources, quantize_graph, weight_rule
from secateur.quantization.qdq import read_scheme, write_qdq
from secateur.quantization.rate import priced_layers
from secateur.quantization.scheme import Rules, Scheme, make_scheme, weighted_nodes
from secateur.quantization.validation import ValidationSet
from secateur.store import write_json
from secateur.training.evaluation import BATCH


def export_key(chain: Chain) -> dict[str, Any]:
    """Key of the float files."""
    return {
        "network": changed_fields(chain.recipe.network),
        "metadata": chain.metadata,
        "engine": 3,  # 3 folds shuffles and repeated pixels
    }


def make_export(chain: Chain, folder: Path) -> None:
    """Export the reference and the pruned network to ONNX."""
    for variant, stage in (("reference", "train"), ("pruned", "remove")):
        network = chain.load_network(stage).cpu()
        export_onnx(network, chain.input_shape, folder / f"{variant}.onnx", chain.metadata)


def scan_bits_key(chain: Chain) -> dict[str, Any]:
    """Key of the scan of bits."""
    config = chain.recipe.quantize
    return {
        "images": config.scan_images,
        "per_channel": config.per_channel,
        "saturation_free": config.saturation_free,
    }


def make_scan_bits(chain: Chain, folder: Path) -> None:
    """Measure the validation loss against the bits of each layer's weight."""
    model = read_model(chain.stage("export").folder / "pruned.onnx")
    validation, rule = validation_images(chain), weight_rule(chain.recipe.quantize)
    batches = -(-len(validation.images) // BATCH)
    with progress("scan bits", batches * len(weighted_nodes(Graph(model)))) as tick:
        points = scan_bits(
            model, validation.images, validation.prepare, rule=rule, advance=tick.advance
        )
    write_json(folder / "scan_bits.json", [point.to_dict() for point in points])


def validation_images(chain: Chain) -> ValidationSet:
    """The validation images for choices of quantization."""
    _, validation = chain.parts
    some = validation.spread(chain.recipe.quantize.scan_images)
    return ValidationSet(some.to(torch.device("cpu")), chain.prepare)


def quantize_key(chain: Chain) -> dict[str, Any]:
    """Key of quantization without training."""
    return {
        "quantize": changed_fields(chain.recipe.quantize, "epochs", "learning_rate"),
        "seed": chain.recipe.seed,
        "engine": 3,  # 3 has scales of few digits
    }


def make_quantize(chain: Chain, folder: Path) -> None:
    """Quantize the pruned network without training."""
    config, points = chain.recipe.quantize, []
    if config.bits == "mixed":
        scanned = chain.stage("scan-bits").json("scan_bits.json")
        points = [BitPoint.from_dict(point) for point in scanned]
    graph = read_model(chain.stage("export").folder / "pruned.onnx")
    resources = Resources(validation_images(chain))
    done = quantize_graph(graph, calibration_images(chain), config, resources, points)
    write_model(done.model, folder / "float.onnx")
    write_json(folder / "ranges.json", done.ranges)
    write_json(folder / "bits.json", {name: rule.bits for name, rule in done.rules.items()})
    write_json(folder / "chosen.json", done.chosen)
    write_qdq(done.model, done.scheme, folder / "quantized.onnx")


def calibration_images(chain: Chain) -> torch.Tensor:
    """Prepared training images drawn by the seed, float32 (N, C, R, R), on the CPU."""
    training, _ = chain.parts
    generator = torch.Generator().manual_seed(chain.recipe.seed)
    order = torch.randperm(len(training), generator=generator)
    chosen = order[: chain.recipe.quantize.images].to(chain.device)
    return chain.prepare(training.take(chosen).pixels[:]).contiguous().cpu()


def quantize_train_key(chain: Chain) -> dict[str, Any]:
    """Key of quantization-aware training."""
    config = chain.recipe.quantize
    return {
        "epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "train": changed_fields(chain.recipe.train),
        "seed": chain.recipe.seed,
    }


def make_quantize_train(chain: Chain, folder: Path) -> None:
    """Train the quantized network with learned step sizes."""
    config, before = chain.recipe.quantize, chain.stage("quantize")
    model = read_model(before.folder / "float.onnx")
    ranges = {name: tuple(ends) for name, ends in before.json("ranges.json").items()}
    bits = before.json("bits.json")
    rules = {name: weight_rule(config, width) for name, width in bits.items()}
    network = _trainable(chain, model, make_scheme(model, ranges, rules), rules).to(chain.device)
    changes = {
        "epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "schedule": "one-cycle",
        "shards": 1,
        "start": None,
    }
    schedule = chain.recipe.train.model_copy(update=changes)
    masks = Masks(network.masks())
    trained = train_into(chain, folder, network, schedule, "quantize-train", masks)
    assert isinstance(trained, Trainable)
    write_qdq(model, trained.learned(), folder / "quantized.onnx")


def _trainable(chain: Chain, model: onnx.ModelProto, scheme: Scheme, rules: Rules) -> Trainable:
    """The network to train: from the float weights, or from the integers chosen by pricing."""
    if not chain.recipe.quantize.price:
        return Trainable(model, scheme, rules)
    priced = read_scheme(model, chain.stage("quantize").folder / "quantized.onnx")
    return Trainable(model, priced, rules, priced_layers(Graph(model)))
