"""Small ONNX graphs whose results can be computed by hand."""

import numpy as np
import onnx


def pointwise(path, weight):
    """A 1x1 convolution and a linear layer, so that the convolution's result is quantized."""
    helper = onnx.helper
    outputs, inputs = weight.shape
    constants = {
        "weight": weight.reshape(outputs, inputs, 1, 1),
        "bias": np.zeros(outputs, np.float32),
        "identity": np.eye(outputs, dtype=np.float32),
        "zero": np.zeros(outputs, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weight", "bias"], ["conv"], name="conv"),
            helper.make_node("GlobalAveragePool", ["conv"], ["pool"], name="pool"),
            helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
            helper.make_node(
                "Gemm", ["flat", "identity", "zero"], ["logits"], name="gemm", transB=1
            ),
        ],
        "pointwise",
        [helper.make_tensor_value_info("image", 1, ["batch", inputs, 8, 8])],
        [helper.make_tensor_value_info("logits", 1, ["batch", outputs])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
