"""Files of other exporters become graphs that compute the same and can be quantized."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.version_converter
import pytest
import torch
from torch import nn

import secateur
from helpers.onnx_files import Attention, ChannelsLast, Gated, exported, graph, helper
from helpers.tiny_networks import NETWORKS, images
from secateur.artifact.packing import unpack
from secateur.errors import SecateurError, StoreError
from secateur.onnx_ir.model import Graph
from secateur.quantization.importing import OLDEST_OPSET, import_onnx, newest_opset
from secateur.quantization.scheme import weighted_nodes
from secateur.runtimes import OnnxRuntime

X = images((3, 16, 16), 3, seed=4).numpy()


def counts(model):
    return Counter(node.op_type for node in model.graph.node)


def logits(model, x=X):
    return OnnxRuntime(model.SerializeToString(), 1).run(x)


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


EXPORTS = {
    "dynamo": {},
    "dynamo, fixed batch": {"dynamic": False},
    "dynamo, external data": {"external": True, "opset": 18},
    "torchscript 14": {"dynamo": False, "opset": 14},
    "torchscript 17, fixed batch": {"dynamo": False, "opset": 17, "dynamic": False},
}


@pytest.mark.parametrize("options", EXPORTS.values(), ids=list(EXPORTS))
@pytest.mark.parametrize("make", [Attention, Gated, ChannelsLast])
def test_files_of_both_exporters_compute_the_same_for_any_batch(make, options, tmp_path):
    network = seeded(make)
    imported = import_onnx(exported(network, (3, 16, 16), tmp_path / "n.onnx", **options), X)
    with torch.inference_mode():
        expected = network(torch.from_numpy(X)).numpy()
    assert np.allclose(logits(imported), expected, atol=1e-4)
    assert np.allclose(logits(imported, X[:1]), expected[:1], atol=1e-4)
    assert imported.graph.input[0].name == "pixels"
    assert imported.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    linear = sum(isinstance(module, nn.Linear) for module in network.modules())
    assert counts(imported)["Gemm"] == linear
    assert len(weighted_nodes(Graph(imported))) == counts(imported)["Conv"] + linear
    assert not {"BatchNormalization", "Shape", "Expand", "Constant"} & set(counts(imported))


@pytest.mark.parametrize("name", ["shufflenet", "mobilenet"])
def test_networks_of_torchvision_come_out_as_exported_here(name, tmp_path):
    make, shape = NETWORKS[name]
    path = exported(make(), shape, tmp_path / "n.onnx", dynamo=False, opset=13)
    x = images(shape, 2).numpy()
    imported = import_onnx(path, x)
    assert np.allclose(logits(imported, x), OnnxRuntime(path, 1).run(x), atol=1e-4)
    assert not {"Transpose", "ReduceMean"} & set(counts(imported))  # shuffles are folded


def of_opset(opset, folder):
    """A small network as a file of an opset, and images."""
    make, shape = NETWORKS["mobilenet"]
    first = exported(make(), shape, folder / "13.onnx", dynamo=False, opset=13, name="photo")
    path = folder / "n.onnx"
    onnx.save(onnx.version_converter.convert_version(onnx.load(first), opset), path)
    assert onnx.load(path).opset_import[0].version == opset
    return path, images(shape, 16)


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, newest_opset() + 1))
def test_every_opset_is_quantized_packed_and_run(opset, tmp_path):
    path, x = of_opset(opset, tmp_path)
    small = secateur.quantize(path, x, method="minmax")
    assert small.parity.signal_to_noise_db > 20
    saved = small.save(tmp_path / "q.onnx")
    packed = secateur.pack(saved, tmp_path / "q.sec")
    assert unpack(packed.read_bytes()).onnx == saved.read_bytes()
    reference = OnnxRuntime(path, 1).run(x.numpy())
    error = OnnxRuntime(saved, 1).run(x.numpy()) - reference
    assert np.abs(error).max() < 0.2 * np.abs(reference).max()


@pytest.mark.parametrize("opset", range(newest_opset() + 1, onnx.defs.onnx_opset_version() + 1))
def test_an_opset_too_new_for_integers_is_converted_or_refused(opset, tmp_path):
    path, x = of_opset(opset, tmp_path)
    try:
        small = secateur.quantize(path, x, method="minmax")
    except SecateurError as error:
        assert "opset_version=21" in str(error)  # noqa: PT017
    else:
        assert small.parity.signal_to_noise_db > 20


def test_linear_layers_of_every_spelling_are_gemm(tmp_path):
    random = np.random.default_rng(0)
    weight = random.standard_normal((192, 4)).astype(np.float32)
    constants = {"w": weight, "b": np.ones(4, np.float32), "s": np.float32([1, 2, 3, 4])}
    constants |= {"shape": np.array([0, -1])}
    flat = helper.make_node("Reshape", ["image", "shape"], ["flat"])
    x = images((3, 8, 8), 2).numpy()
    spellings = {
        "gemm": [helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], alpha=0.5, beta=2.0)],
        "matmul": [helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        "matmul, bias and scale": [
            helper.make_node("MatMul", ["flat", "w"], ["product"]),
            helper.make_node("Add", ["b", "product"], ["sum"]),
            helper.make_node("Mul", ["sum", "s"], ["logits"]),
        ],
    }
    for name, nodes in spellings.items():
        path = graph([flat, *nodes], tmp_path / f"{name}.onnx", constants=constants)
        imported = import_onnx(path, x)
        assert counts(imported)["Gemm"] == len(weighted_nodes(Graph(imported))) == 1
        assert not {"MatMul", "Add", "Mul"} & set(counts(imported))
        assert np.allclose(logits(imported, x), OnnxRuntime(path, 1).run(x), atol=1e-4)


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding_becomes_explicit(kind, tmp_path):
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"], strides=[2, 2], auto_pad=kind),
        helper.make_node("GlobalAveragePool", ["conv"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["logits"]),
    ]
    path = graph(nodes, tmp_path / "n.onnx", constants={"w": weight})
    x = images((3, 8, 8), 2).numpy()
    imported = import_onnx(path, x)
    assert not any(a.name == "auto_pad" for node in imported.graph.node for a in node.attribute)
    assert np.allclose(logits(imported, x), OnnxRuntime(path, 1).run(x), atol=1e-5)


def test_a_batch_that_is_built_into_the_arithmetic_stays(tmp_path):
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["product"]),
        helper.make_node("Reshape", ["product", "all"], ["row"]),
        helper.make_node("Softmax", ["row"], ["shares"], axis=0),
        helper.make_node("Reshape", ["shares", "back"], ["logits"]),
    ]
    constants = {"w": np.ones((192, 4), np.float32), "all": np.array([8]), "back": np.array([2, 4])}
    path = graph(
        nodes, tmp_path / "n.onnx", inputs={"image": (2, 3, 8, 8)}, outputs={"logits": (2, 4)},
        constants=constants,
    )  # fmt: skip
    x = images((3, 8, 8), 2).numpy()
    imported = import_onnx(path, x)
    assert np.allclose(logits(imported, x), OnnxRuntime(path, 1).run(x), atol=1e-6)


CONV = helper.make_node("Conv", ["image", "w"], ["conv"], name="first")
POOL = [
    helper.make_node("GlobalAveragePool", ["conv"], ["pool"]),
    helper.make_node("Flatten", ["pool"], ["logits"]),
]
W = {"w": np.ones((4, 3, 1, 1), np.float32)}
SMALL = images((3, 8, 8), 1).numpy()


def refused(path, x=SMALL):
    with pytest.raises(SecateurError) as error:
        import_onnx(path, x)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_custom_operators_are_refused_by_name(tmp_path):
    custom = helper.make_node("Fold", ["conv"], ["conv2"], domain="com.example", name="fold_3")
    pool = helper.make_node("GlobalAveragePool", ["conv2"], ["pool"])
    nodes, domains = [CONV, custom, pool, POOL[1]], ("com.example",)
    path = graph(nodes, tmp_path / "n.onnx", constants=W, domains=domains)
    line = refused(path)
    assert "a custom operator" in line
    assert "node fold_3" in line
    assert "com.example.Fold" in line
    assert "standard operators" in line


def test_loops_are_refused_by_name(tmp_path):
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["go"]),
            helper.make_node("Relu", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["times", "", "conv"], ["conv2"], name="loop_1", body=body)
    pool = helper.make_node("GlobalAveragePool", ["conv2"], ["pool"])
    path = graph(
        [CONV, loop, pool, POOL[1]], tmp_path / "n.onnx", constants=W | {"times": np.array(2)}
    )
    line = refused(path)
    assert "control flow" in line
    assert "node loop_1" in line
    assert "found Loop" in line


def test_other_inputs_and_outputs_are_refused(tmp_path):
    two = {"image": ("n", 3, 8, 8), "mask": ("n", 1, 8, 8)}
    line = refused(graph([CONV, *POOL], tmp_path / "two.onnx", constants=W, inputs=two))
    assert "2 inputs: image float (n, 3, 8, 8), mask float (n, 1, 8, 8)" in line
    flat = {"image": ("n", 3)}
    line = refused(graph([CONV, *POOL], tmp_path / "flat.onnx", constants=W, inputs=flat))
    assert "found image float (n, 3)" in line
    outputs = {"logits": ("n", 4), "conv": ("n", 4, 8, 8)}
    line = refused(graph([CONV, *POOL], tmp_path / "outputs.onnx", constants=W, outputs=outputs))
    assert "one float32 output (N, classes)" in line
    map_only = {"conv": ("n", 4, 8, 8)}
    line = refused(graph([CONV], tmp_path / "map.onnx", constants=W, outputs=map_only))
    assert "not a classifier" in line


def test_images_of_another_shape_are_refused(tmp_path):
    path = graph([CONV, *POOL], tmp_path / "n.onnx", constants=W)
    line = refused(path, images((1, 8, 8), 1).numpy())
    assert "expected image float (n, 3, 8, 8), found images of shape (1, 1, 8, 8)" in line


def test_old_and_missing_files_are_refused(tmp_path):
    path = graph([CONV, *POOL], tmp_path / "old.onnx", constants=W, opset=11)
    assert "expected opset 13 or newer, found opset 11" in refused(path)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    path = exported(network, (3, 8, 8), tmp_path / "n.onnx", external=True)
    (tmp_path / "n.onnx.data").unlink()
    with pytest.raises(StoreError, match=r"n\.onnx\.data"):
        import_onnx(path, SMALL)
