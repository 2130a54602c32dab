"""The chain: each stage a function of its part of the recipe and of the stages before it.

    data -> train -> scan -> prune-1 .. prune-R -> remove -> export -> quantize -> bench

Quantization reads the exported float graph, because the tensors that get rounded are those of the
graph that ships. The test images are read by ``bench`` alone, from the files that ship.
"""

from secateur.pipeline.shipping_stages import VARIANTS, Pipeline, Variant

__all__ = ["VARIANTS", "Pipeline", "Variant"]
