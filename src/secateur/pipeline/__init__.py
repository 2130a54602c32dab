"""The stages from a recipe to the packed file and report, in the order of :mod:`.stages`."""

from secateur.pipeline.chain import VARIANTS, Chain, Variant
from secateur.pipeline.stages import open_chain

__all__ = ["VARIANTS", "Chain", "Variant", "open_chain"]
