"""Latency of each node of a file, and possible savings.

ONNX Runtime optimizes the graph of a file: it fuses operators, changes layouts, and selects integer
kernels. The optimized graph is read back, and each of its nodes is timed while it runs.
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
