"""The artifact: one small, safe file that decodes to the packed ONNX file bit for bit."""
