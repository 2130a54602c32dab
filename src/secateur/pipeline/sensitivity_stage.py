"""The stage ``scan``: validation accuracy against the fraction pruned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from secateur.console import progress
from secateur.pipeline.chain import Chain, changed_fields
from secateur.pruning.planner import linear_layers
from secateur.sensitivity.scan import ScanPoint, choose_threshold, scan_layers, scan_network
from secateur.store import write_json


def scan_key(chain: Chain) -> dict[str, Any]:
    """Key of the scan; tolerance and manual threshold do not affect it."""
    return {
        "scan": changed_fields(chain.recipe.scan, "tolerance", "threshold"),
        "prune": {"linear": chain.recipe.prune.linear},
        "engine": 2,  # 1 scanned single layers; 2 scans groups of dependent channels
    }


def make_scan(chain: Chain, folder: Path) -> None:
    """Scan all groups together on all validation images, then each layer on some of them."""
    config, network = chain.recipe.scan, chain.load_network("train")
    prunable, weights = chain.dense.prunable, sparse_layers(chain)
    _, validation = chain.parts
    some = validation.spread(config.images)
    layers = len(prunable.groups) + len(weights)
    points = len(config.fractions) + layers * len(config.layer_fractions) + 2
    with progress("scan", points) as tick:
        together = scan_network(
            network, prunable, weights, config.fractions, validation, chain.prepare, tick.advance
        )
        single = scan_layers(
            network, prunable, weights, config.layer_fractions, some, chain.prepare, tick.advance
        )
    write_json(
        folder / "scan.json",
        {
            "network": [point.to_dict() for point in together],
            "layers": [point.to_dict() for point in single],
            "protected": [asdict(layer) for layer in prunable.protected],
        },
    )


def sparse_layers(chain: Chain) -> list[str]:
    """Names of linear layers in which single weights are pruned."""
    return linear_layers(chain.fresh_network()) if chain.recipe.prune.linear == "weights" else []


def sensitivity_curves(chain: Chain) -> dict[str, list[tuple[float, float]]]:
    """From scanned layer to its points (fraction removed, loss of accuracy on validation)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for layer in chain.stage("scan").json("scan.json")["layers"]:
        point = ScanPoint.from_dict(layer)
        curves.setdefault(point.layer, []).append((point.fraction, point.drop.value))
    return curves


def pruning_threshold(chain: Chain) -> float:
    """The fraction to prune: from the scan, or from the recipe."""
    config = chain.recipe.scan
    if config.threshold is not None:
        return config.threshold
    points = chain.stage("scan").json("scan.json")["network"]
    return choose_threshold([ScanPoint.from_dict(point) for point in points], config.tolerance)
