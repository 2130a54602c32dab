from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from helpers.onnx_graphs import pointwise
from helpers.tiny_networks import NETWORKS, images
from secateur.errors import SecateurError, StoreError
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import Graph
from secateur.quantization.affine import INT8_SYMMETRIC, UINT8, from_range, from_tensor
from secateur.quantization.calibrate import calibrate
from secateur.quantization.placement import find_placement
from secateur.quantization.qdq import quantize_onnx
from secateur.quantization.weights import LARGEST_BIAS, WeightRule, choose_scales, few_digits
from secateur.runtimes import OnnxRuntime, session_options


@pytest.fixture(scope="module", params=list(NETWORKS))
def quantized(request, tmp_path_factory):
    """A folder with one network's float.onnx and int8.onnx, and images."""
    make, shape = NETWORKS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    export_onnx(make(), shape, folder / "float.onnx", {"classes": "[]"})
    batches = images(shape, 64, seed=2).numpy()
    ranges = calibrate(folder / "float.onnx", [batches], "minmax", 100)
    quantize_onnx(folder / "float.onnx", ranges, folder / "int8.onnx")
    return folder, images(shape, 32, seed=3).numpy()


def executed(path, folder):
    """Counts of the operators that ONNX Runtime executes for a file."""
    options = session_options(1)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_everything_runs_on_integers(quantized):
    folder, _ = quantized
    before = Counter(node.op_type for node in onnx.load(folder / "float.onnx").graph.node)
    after = executed(folder / "int8.onnx", folder)
    assert after["QLinearConv"] == before["Conv"] > 0
    assert after["QGemm"] == before["Gemm"] > 0
    assert after["QLinearAdd"] == before["Add"]
    assert after["QLinearConcat"] == before["Concat"]
    assert after["QLinearGlobalAveragePool"] == before["GlobalAveragePool"]
    assert not set(after) & {"Conv", "Gemm", "FusedConv", "FusedGemm", "Relu", "Clip", "Add"}
    # The image is quantized once; nothing is rounded again, and nothing returns to float.
    assert (after["QuantizeLinear"], after["DequantizeLinear"]) == (1, 0)


def test_activations_are_absorbed_by_the_quantizers(quantized):
    folder, _ = quantized
    kinds = {node.op_type for node in onnx.load(folder / "int8.onnx").graph.node}
    assert "Conv" in kinds
    assert not kinds & {"Relu", "Clip"}


def test_logits_stay_close_to_the_float_network(quantized):
    folder, x = quantized
    a = OnnxRuntime(folder / "float.onnx", 1).run(x)
    b = OnnxRuntime(folder / "int8.onnx", 1).run(x)
    a, b = a - a.mean(0), b - b.mean(0)  # what images have in common would flatter the cosine
    assert (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b) > 0.98


def test_integer_kernels_agree_with_the_graph_in_float(quantized):
    """The same QDQ file without any fusion computes every operator in float32."""
    folder, x = quantized
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(
        folder / "int8.onnx", options, providers=["CPUExecutionProvider"]
    )
    a = plain.run(None, {"image": x})[0]
    b = OnnxRuntime(folder / "int8.onnx", 1).run(x)
    assert np.abs(a - b).max() <= 0.02 * np.abs(a).max()


def test_weights_are_integers_and_the_metadata_is_carried_over(quantized):
    folder, _ = quantized
    model = onnx.load(folder / "int8.onnx")
    graph = Graph(model)
    large = [t for t in model.graph.initializer if np.prod(t.dims) > 64 and "scale" not in t.name]
    assert {t.data_type for t in large} <= {onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    for node in graph.nodes:
        if node.op_type in ("Conv", "Gemm"):
            dequantize = graph.producer[node.input[1]]
            weight, delta = (graph.constant(name) for name in dequantize.input[:2])
            assert weight.min() >= -127
            assert delta.shape == (weight.shape[0],)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "classes": "[]",
        "saturation_free": "true",
    }


def test_bytes_are_moved_under_one_scale(quantized):
    folder, _ = quantized
    float_model = onnx.load(folder / "float.onnx")
    groups = find_placement(float_model).groups
    group = {tensor: index for index, tensors in enumerate(groups) for tensor in tensors}
    moving = ("Concat", "Split", "Reshape", "Transpose", "MaxPool", "Flatten", "Resize")
    moved = [node for node in float_model.graph.node if node.op_type in moving]
    assert moved
    for node in moved:
        ends = [name for name in (*node.input, *node.output) if name in group]
        assert len({group[name] for name in ends}) == 1


def test_a_relu_whose_range_is_signed_is_kept(tmp_path):
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(2, 4, 1), torch.nn.Conv2d(2, 4, 1)
            self.last = torch.nn.Linear(8, 3)

        def forward(self, x):
            x = torch.cat((self.a(x).relu(), self.b(x)), 1)  # one scale for both, with a sign
            return self.last(x.mean([2, 3]))

    torch.manual_seed(0)
    x = images((2, 8, 8), 16).numpy()
    export_onnx(Half().eval(), (2, 8, 8), tmp_path / "f.onnx", {})
    quantize_onnx(
        tmp_path / "f.onnx",
        calibrate(tmp_path / "f.onnx", [x], "minmax", 100),
        tmp_path / "q.onnx",
    )
    a = OnnxRuntime(tmp_path / "f.onnx", 1).run(x)
    b = OnnxRuntime(tmp_path / "q.onnx", 1).run(x)
    assert np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_a_row_without_weights_keeps_its_bias():
    weight = np.array([[0, 0], [1e-12, 0], [1, -1]], np.float32)
    bias = np.array([0.3, 0.5, 0.7], np.float32)
    input_scale = np.float32(0.01)
    affine = choose_scales(weight, WeightRule(saturation_free=False), bias, input_scale)
    stored = np.rint(bias / (input_scale * affine.delta))
    assert (np.abs(stored) <= LARGEST_BIAS + 100).all()
    assert stored * input_scale * affine.delta == pytest.approx(bias, rel=1e-4)
    assert affine.delta[2] == few_digits(from_tensor(weight[2], INT8_SYMMETRIC).delta)


def test_missing_or_impossible_range_names_the_tensor(tmp_path):
    pointwise(tmp_path / "f.onnx", np.eye(3, dtype=np.float32))
    known = dict.fromkeys(("image", "conv", "pool", "flat"), (0.0, 1.0))
    for bad in ((1.0, 0.0), (0.0, np.inf)):
        with pytest.raises(SecateurError, match=r"not a range \(conv\)"):
            quantize_onnx(tmp_path / "f.onnx", known | {"conv": bad}, tmp_path / "q.onnx")
    del known["conv"]
    with pytest.raises(SecateurError, match=r"no range for a tensor \(conv\)"):
        quantize_onnx(tmp_path / "f.onnx", known, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_files_that_cannot_be_quantized(tmp_path):
    pointwise(tmp_path / "f.onnx", np.eye(3, dtype=np.float32))
    ranges = dict.fromkeys(("image", "conv", "pool", "flat"), (0.0, 1.0))
    quantize_onnx(tmp_path / "f.onnx", ranges, tmp_path / "q.onnx")
    with pytest.raises(SecateurError, match="quantized already"):
        quantize_onnx(tmp_path / "q.onnx", ranges, tmp_path / "again.onnx")
    (tmp_path / "corrupt.onnx").write_bytes(b"not a network")
    for name in ("corrupt.onnx", "missing.onnx"):
        with pytest.raises(StoreError, match=name):
            quantize_onnx(tmp_path / name, ranges, tmp_path / "again.onnx")


def test_scale_of_a_group_holds_every_member(tmp_path):
    pointwise(tmp_path / "f.onnx", np.eye(3, dtype=np.float32))
    ranges = {"image": (0.0, 1.0), "conv": (0.0, 2.0), "pool": (0.0, 3.0), "flat": (-1.0, 2.0)}
    quantize_onnx(tmp_path / "f.onnx", ranges, tmp_path / "q.onnx")
    graph = Graph(onnx.load(tmp_path / "q.onnx"))
    scales = {
        node.input[0]: graph.constant(node.input[1])
        for node in graph.nodes
        if node.op_type == "QuantizeLinear"
    }
    assert scales["pool"] == scales["flat"] == from_range(-1.0, 3.0, UINT8).delta
    assert scales["conv"] == from_range(0.0, 2.0, UINT8).delta
