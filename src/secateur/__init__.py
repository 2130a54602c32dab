"""Prunes and quantizes image classifiers, and proves what that cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.artifact.classifier import load
    from secateur.compression import compress
    from secateur.pruning.find import find_prunable
    from secateur.pruning.removal import plan_removal
    from secateur.pruning.surgery import apply_masks, remove

__all__ = ["apply_masks", "compress", "find_prunable", "load", "plan_removal", "remove"]
__version__ = "0.1.0"

_HOMES = {
    "apply_masks": "secateur.pruning.surgery",
    "compress": "secateur.compression.api",
    "find_prunable": "secateur.pruning.find",
    "load": "secateur.artifact.classifier",
    "plan_removal": "secateur.pruning.removal",
    "remove": "secateur.pruning.surgery",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: torch is slow to import, and ``--help`` needs none."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
