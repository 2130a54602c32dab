"""Packed files: one small file that decodes to the original ONNX file bit for bit."""
