"""Prunes and quantizes image classifiers, and measures the loss of accuracy.

The names in ``__all__`` are public and documented in docs/python.md. All other modules and names
are internal: they may change in any version.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.artifact.classifier import Classifier, load
    from secateur.artifact.verify import verify
    from secateur.benchmarking.comparison import benchmark
    from secateur.compression.api import compress
    from secateur.errors import SecateurError
    from secateur.imaging.preparation import Preparation
    from secateur.pipeline.run import run
    from secateur.profiling.explanation import explain
    from secateur.pruning.find import find_prunable
    from secateur.pruning.merging.depth import merge_depth
    from secateur.pruning.merging.rewrite import merge_segments
    from secateur.pruning.plan import Plan
    from secateur.pruning.removal import plan_removal, prune
    from secateur.pruning.surgery import apply_masks, remove, shrink_optimizer
    from secateur.public import export, pack, scan, unpack
    from secateur.quantization.quantize import quantize
    from secateur.recipe.loading import load_recipe

__all__ = [
    "Classifier",
    "Plan",
    "Preparation",
    "SecateurError",
    "apply_masks",
    "benchmark",
    "compress",
    "explain",
    "export",
    "find_prunable",
    "load",
    "load_recipe",
    "merge_depth",
    "merge_segments",
    "pack",
    "plan_removal",
    "prune",
    "quantize",
    "remove",
    "run",
    "scan",
    "shrink_optimizer",
    "unpack",
    "verify",
]
__version__ = "0.1.0"

# ONNX Runtime sends telemetry as soon as it is imported, unless this variable is set.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Classifier": "secateur.artifact.classifier",
    "Plan": "secateur.pruning.plan",
    "Preparation": "secateur.imaging.preparation",
    "SecateurError": "secateur.errors",
    "apply_masks": "secateur.pruning.surgery",
    "benchmark": "secateur.benchmarking.comparison",
    "compress": "secateur.compression.api",
    "explain": "secateur.profiling.explanation",
    "export": "secateur.public",
    "find_prunable": "secateur.pruning.find",
    "load": "secateur.artifact.classifier",
    "load_recipe": "secateur.recipe.loading",
    "merge_depth": "secateur.pruning.merging.depth",
    "merge_segments": "secateur.pruning.merging.rewrite",
    "pack": "secateur.public",
    "plan_removal": "secateur.pruning.removal",
    "prune": "secateur.pruning.removal",
    "quantize": "secateur.quantization.quantize",
    "remove": "secateur.pruning.surgery",
    "run": "secateur.pipeline.run",
    "scan": "secateur.public",
    "shrink_optimizer": "secateur.pruning.surgery",
    "unpack": "secateur.public",
    "verify": "secateur.artifact.verify",
}
"""Public name to the module that defines it; imported when it is first used."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch is slow to import, and ``--help`` needs none."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Names that an interactive shell completes."""
    return sorted([*__all__, "__version__"])
