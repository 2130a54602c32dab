"""ONNX graphs: reading and writing them, exporting to them, and rewriting them."""
