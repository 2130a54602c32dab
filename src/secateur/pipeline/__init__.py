"""The chain from a recipe to packed file and report: its stages, in the order of :mod:`.stages`."""

from secateur.pipeline.chain import VARIANTS, Chain, Variant
from secateur.pipeline.stages import open_chain

__all__ = ["VARIANTS", "Chain", "Variant", "open_chain"]
