"""Post-training quantization: the arithmetic, the ranges, the graph."""
