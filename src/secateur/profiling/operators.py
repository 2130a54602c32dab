"""Sets of operators: conversions, data movement, and integer computation."""

from __future__ import annotations

import re

import onnx

CONVERTERS = ("QuantizeLinear", "DequantizeLinear")
MOVERS = (
    "Concat", "Flatten", "Gather", "Identity", "Pad", "QLinearConcat", "ReorderInput",
    "ReorderOutput", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
INTEGER = re.compile(r"QLinear.*|QGemm|ConvInteger|MatMulInteger.*|DynamicQuantize.*")
"""Operators that compute in integers, whatever their output type."""


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether any node of a graph is quantized."""
    return any(
        node.op_type in CONVERTERS or INTEGER.fullmatch(node.op_type) for node in model.graph.node
    )
