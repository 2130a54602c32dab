"""Where a file's time goes, node by node, and what of it can be saved.

The graph that runs is not the graph in the file: ONNX Runtime fuses operators, changes layouts, and
takes integer kernels where it has them. So the graph it makes of the file is read back, and each of
its nodes is timed while it runs.
"""

from secateur.profiling.block_widths import Width
from secateur.profiling.explanation import Explanation, explain
from secateur.profiling.islands import Island, float_islands
from secateur.profiling.nodes import Node, optimized_graph
from secateur.profiling.text import render

__all__ = [
    "Explanation",
    "Island",
    "Node",
    "Width",
    "explain",
    "float_islands",
    "optimized_graph",
    "render",
]
