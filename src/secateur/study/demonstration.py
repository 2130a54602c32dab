"""A scan with a known fault: masks are computed but not applied when accuracy is measured.

It reproduces the published curves that stay flat up to 85 % (report, Figures 3 and 4), which their
authors call implausible. It says nothing about a network, and all figures label it as a
demonstration.
"""

from __future__ import annotations

import torch

from secateur.console import progress
from secateur.pipeline import Chain
from secateur.pipeline.to_records import Recorder, percent
from secateur.pruning.removal import plan_removal
from secateur.pruning.surgery import apply_masks
from secateur.records import Record
from secateur.statistics import proportion
from secateur.study.curves import NOT_IN_FORCE
from secateur.training.evaluation import correctness

IMAGES = 2000
"""Validation images for each fraction."""


def scan_without_masks(chain: Chain) -> list[Record]:
    """Scan a trained network with masks applied to a copy only: one record per fraction."""
    network, config = chain.load_network("train"), chain.recipe.scan
    _, validation = chain.parts
    some, by, records = validation.spread(IMAGES), Recorder(chain.recipe, chain.stage("train")), []
    example = torch.zeros(1, *chain.input_shape, device=chain.device)
    with progress("masks not applied", len(config.fractions)) as tick:
        for fraction in config.fractions:
            plan = plan_removal(network, example, fraction=fraction)
            apply_masks(network, plan)  # returns a masked copy, which is dropped: the fault
            right = int(correctness(network, some, chain.prepare).sum())
            at = {"layer": NOT_IN_FORCE, "fraction": fraction, "effective_sparsity": 0.0}
            accuracy = percent(proportion(right, len(some)))
            records.append(by("reference", "scan_top1_percent", accuracy, len(some), at=at))
            tick.advance()
    return records
