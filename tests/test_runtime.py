import numpy as np
import onnx
import onnxruntime
import pytest

from secateur.errors import SecateurError
from secateur.quantization.qdq import quantize_onnx
from secateur.runtime import OnnxRuntime, Runtime


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


def test_sums_that_overflow_16_bits_are_exact(tmp_path):
    # 255 * 127 * 2 is beyond int16: the kernel that saturates there gives half the true sum.
    pointwise(tmp_path / "float.onnx", np.ones((16, 64), np.float32))
    ranges = {"image": (0.0, 1.0)} | dict.fromkeys(("conv", "pool", "flat"), (0.0, 64.0))
    quantize_onnx(tmp_path / "float.onnx", ranges, tmp_path / "int8.onnx")
    image = np.ones((1, 64, 8, 8), np.float32)
    found = OnnxRuntime(tmp_path / "int8.onnx", threads=1).run(image)
    assert found == pytest.approx(np.full((1, 16), 64.0), rel=0.01)


def test_satisfies_the_protocol(tmp_path):
    pointwise(tmp_path / "float.onnx", np.ones((2, 3), np.float32))
    runtime: Runtime = OnnxRuntime(tmp_path / "float.onnx", threads=1)
    assert (runtime.name, runtime.version) == ("onnxruntime", onnxruntime.__version__)
    for batch in (1, 5):
        logits = runtime.run(np.ones((batch, 3, 8, 8), np.float32))
        assert logits.shape == (batch, 2)
        assert logits.dtype == np.float32


def test_missing_or_corrupt_file_is_one_line(tmp_path, capfd):
    (tmp_path / "corrupt.onnx").write_bytes(b"not a network")
    for name in ("missing.onnx", "corrupt.onnx"):
        with pytest.raises(SecateurError, match=name) as caught:
            OnnxRuntime(tmp_path / name, threads=1)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
