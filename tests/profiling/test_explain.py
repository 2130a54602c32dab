"""What ``secateur explain`` says of files whose faults are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torchvision.models

import secateur.cli.app as cli
from helpers.onnx_files import graph
from helpers.onnx_graphs import pointwise
from helpers.tiny_networks import NETWORKS, images, settled
from secateur.artifact.packing import pack
from secateur.errors import SecateurError
from secateur.onnx_ir.export import export_onnx
from secateur.profiling import Node, Width, explain, float_islands, optimized_graph, render
from secateur.profiling.block_widths import _integer_blocks
from secateur.profiling.nodes import WARMUP, gather
from secateur.profiling.operators import MOVERS
from secateur.quantization.calibrate import calibrate
from secateur.quantization.qdq import quantize_onnx


def node(kind, reads, gives, **attributes):
    return onnx.helper.make_node(kind, reads.split(), [gives], name=gives, **attributes)


SHUFFLE = [
    node("Reshape", "first halves", "apart"),
    node("Transpose", "apart", "turned", perm=[0, 2, 1, 3, 4]),
    node("Reshape", "turned whole", "active"),
]
GATE = [
    node("GlobalAveragePool", "first", "mean"),
    node("Conv", "mean second.weight", "gate"),
    node("Sigmoid", "gate", "open"),
    node("Mul", "first open", "active"),
]
RELU = [node("Relu", "first", "active")]
CLIP = [node("Clip", "first zero six", "active")]
SUM = [node("Tanh", "first", "bent"), node("Add", "first bent", "active")]
HARD_SWISH = [node("HardSwish", "first", "active")]


def written(path, between, width=16, depthwise=False, last=()):
    """Convolution, ``between`` from ``first`` to ``active``, convolution, pool, linear layer."""
    random = np.random.default_rng(0)
    shapes = {
        "first.weight": (width, 3, 1, 1),
        "second.weight": (width, 1, 3, 3) if depthwise else (width, width, 1, 1),
        "linear.weight": (4, width),
    }
    constants = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    constants |= {"zero": np.zeros(()), "six": np.full((), 0.5)}
    tensors = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in constants.items()]
    for name, shape in (("halves", (0, 2, width // 2, 16, 16)), ("whole", (0, width, 16, 16))):
        tensors.append(onnx.numpy_helper.from_array(np.array(shape), name))
    result = last[-1].output[0] if last else "logits"
    graph = onnx.helper.make_graph(
        [
            node("Conv", "image first.weight", "first"),
            *between,
            node("Conv", "active second.weight", "second", group=width if depthwise else 1),
            node("GlobalAveragePool", "second", "pool"),
            node("Flatten", "pool", "flat"),
            node("Gemm", "flat linear.weight", "logits", transB=1),
            *last,
        ],
        "written",
        [onnx.helper.make_tensor_value_info("image", 1, ["batch", 3, 16, 16])],
        [onnx.helper.make_tensor_value_info(result, 1, ["batch", 4])],
        tensors,
    )
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


def quantized(path, change=lambda ranges: ranges):
    shape = [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    ranges = calibrate(path, [images(tuple(shape[1:]), 4).numpy()], "minmax", 100)
    quantize_onnx(path, change(ranges), path.with_name("int8.onnx"))
    return path.with_name("int8.onnx")


def said(found, everything=False):
    return "\n".join(part for part in render(found, everything) if isinstance(part, str))


def ours(name):
    """A network as it ships; of AlexNet a narrow one, for fifty million weights show no more."""
    if name == "alexnet":
        return NETWORKS[name]
    shape = (3, 32, 32)
    make = getattr(torchvision.models, name)
    return (lambda: settled(make(num_classes=10), shape)), shape


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "mobilenet_v2", "alexnet"])
def test_no_island_in_our_networks(name, tmp_path):
    make, shape = ours(name)
    export_onnx(make(), shape, tmp_path / "float.onnx", {})
    found = explain(quantized(tmp_path / "float.onnx"), 1, 2)
    assert float_islands(optimized_graph(tmp_path / "int8.onnx")) == []
    assert (found.islands, found.edges, found.conversions) == ((), ("image/quantized",), ())
    assert {node.element for node in found.nodes} <= {"int8", "float>int8", "int8>float"}
    assert "Still in float: nothing" in said(found)


def test_an_activation_without_a_kernel_is_an_island_without_its_convolution(tmp_path):
    path = quantized(written(tmp_path / "float.onnx", HARD_SWISH))
    explained = explain(path, 1, 2)
    names = float_islands(optimized_graph(path))
    assert {island.name for island in explained.islands} == set(names)
    why = {island.operator: island.why for island in explained.islands}
    assert set(why) == {"HardSigmoid", "Mul"}
    assert why["HardSigmoid"] == "HardSigmoid has no integer kernel here"
    assert explained.conversions
    assert "Still in float: 2, with" in said(explained)


def test_an_addition_beside_an_activation_is_an_island_with_it(tmp_path):
    path = quantized(written(tmp_path / "float.onnx", SUM))
    why = {island.operator: island.why for island in explain(path, 1, 2).islands}
    assert "no quantizer parts it from" in why["Add"]
    assert "Tanh" in why["Add"]


def test_a_gate_runs_on_integers(tmp_path):
    explained = explain(quantized(written(tmp_path / "float.onnx", GATE)), 1, 2)
    assert explained.islands == ()
    assert "QLinearMul" in explained.operators()


def test_a_clip_that_its_quantizer_goes_beyond_is_said_to_be_there(tmp_path):
    path = written(tmp_path / "float.onnx", CLIP)
    assert explain(quantized(path), 1, 2).islands == ()
    found = explain(quantized(path, lambda ranges: ranges | {"active": (0.0, 0.7)}), 1, 2)
    assert any("Clip was not absorbed" in island.why for island in found.islands)


def test_a_softmax_behind_the_logits_is_an_island(tmp_path):
    last = [node("Softmax", "logits", "shares")]
    path = written(tmp_path / "float.onnx", RELU, last=last)
    (island,) = explain(quantized(path), 1, 2).islands
    assert (island.operator, island.why) == ("Softmax", "it makes the file's output")


def test_a_float_file_has_no_islands_but_is_float(tmp_path):
    path = written(tmp_path / "float.onnx", HARD_SWISH)
    assert float_islands(optimized_graph(path)) == []
    found = explain(path, 1, 2)
    assert found.precision == "float"
    assert "Still in float: all of it" in said(found)


def test_times_are_medians_after_the_warm_up():
    def event(dur, name="conv_kernel_time", index="0"):
        arguments = {
            "op_name": "QLinearConcat",
            "node_index": index,
            "input_type_shape": [{"float": []}, {"uint8": []}, {"uint8": [1, 4, 4, 58]}],
            "output_type_shape": [{"uint8": [1, 4, 4, 116]}],
        }
        return {"cat": "Node", "name": name, "dur": dur, "args": arguments}

    runs = [event(1e6)] * WARMUP + [event(dur) for dur in (3000, 1000, 90000)]
    others = [event(1000, "last_kernel_time", "1")] * (WARMUP + 3)
    ignored = [{"cat": "Session", "name": "model_run", "dur": 5, "args": {}}]
    first, last = gather([*ignored, *others, *runs])
    assert first == Node("conv", "QLinearConcat", "int8", (1, 4, 4, 58), (1, 4, 4, 116), 3.0, 0.75)
    assert (last.name, last.ms, last.share) == ("last", 1.0, 0.25)


@pytest.mark.parametrize(
    ("processor", "blocks"),
    [("some, avx2", (8,)), ("some, avx2 avx512f", (16,)), ("some arm", ())],
)
def test_widths_of_a_float_file_follow_the_processor(processor, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.environment.processor", lambda: processor)
    found = explain(written(tmp_path / "float.onnx", RELU, 20), 1, 2)
    expected = {(end, 20, block) for end in ("outputs", "inputs") for block in blocks}
    assert {(width.end, width.channels, width.block) for width in found.widths} == expected
    assert ("not known for this processor" in said(found)) == (not blocks)


def test_widths_of_an_int8_file(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.environment.processor", lambda: "some, avx2")
    path = written(tmp_path / "float.onnx", RELU, 58, depthwise=True)
    found = explain(quantized(path), 1, 2)
    ends = {(width.end, width.channels, width.block) for width in found.widths}
    assert ends == {("outputs", 58, 16), ("channels", 58, 16)}
    text = "58 channels, 10 beyond whole blocks of 16: prune to 48 or widen to 64"
    assert text in said(found)
    full = explain(quantized(written(path, RELU, 64, depthwise=True)), 1, 2)
    assert full.widths == ()


def test_a_direct_kernel_is_for_int8_weights_alone():
    blocks = _integer_blocks
    assert {(end, block) for end, _, block, _ in blocks(58, 64, 1, signed=True, wide=False)} == {
        ("outputs", 16), ("inputs", 4)
    }  # fmt: skip
    assert {end for end, *_ in blocks(58, 64, 1, signed=False, wide=False)} == {"outputs"}


def test_fewer_than_a_block_can_only_widen():
    width = Width("conv", 1.0, "outputs", 10, 16, "why")
    assert str(width) == "10 outputs, 10 beyond whole blocks of 16: widen to 16; why"


def test_a_shuffle_moves_data(tmp_path):
    found = explain(written(tmp_path / "float.onnx", SHUFFLE), 1, 2)
    moving = found.operators(MOVERS)
    assert moving["Transpose"]["count"] == 1
    assert moving["Reshape"]["count"] == 2
    assert sum(sums["share"] for sums in found.operators().values()) == pytest.approx(1)
    assert "Only moves data: " in said(found)


def open_sides(path):
    pointwise(path, np.ones((2, 3), np.float32))
    model = onnx.load(path)
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        dim.dim_param = name
    onnx.save(model, path)


def test_open_sides_want_a_size(tmp_path):
    open_sides(tmp_path / "open.onnx")
    with pytest.raises(SecateurError, match=r"input's shape open .*\(batch, 3, h, w\); .*--size"):
        explain(tmp_path / "open.onnx", 1, 2)
    found = explain(tmp_path / "open.onnx", 1, 2, size=8)
    assert any(8 in node.reads for node in found.nodes)


@pytest.mark.parametrize(
    ("kind", "part"),
    [("text", "not an ONNX file"), ("domain", "ONNX Runtime cannot run the file"),
     ("flat", "found image of (n, 3)")],
)  # fmt: skip
def test_bad_files_are_one_line(kind, part, tmp_path):
    path = tmp_path / "bad.onnx"
    pointwise(path, np.ones((2, 3), np.float32))
    model = onnx.load(path)
    if kind == "domain":
        model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    if kind == "flat":
        linear, weight = onnx.helper.make_node("Gemm", ["image", "w"], ["logits"]), np.ones((3, 4))
        graph([linear], path, inputs={"image": ("n", 3)}, constants={"w": weight.astype("f4")})
    if kind == "text":
        path.write_text("not a network")
    with pytest.raises(SecateurError) as caught:
        explain(path, 1, 2)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.skipif(not LIGHT.is_dir(), reason="this onnx comes without its test files")
@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_files_whose_weights_the_graph_computes(name):
    explanation = explain(LIGHT / f"light_{name}.onnx", 1, 1)
    assert explanation.nodes
    assert "Widths that miss" in said(explanation)


def test_a_packed_file_is_explained_as_the_network_in_it(tmp_path):
    path = quantized(written(tmp_path / "float.onnx", RELU))
    packed = tmp_path / "net.sec"
    packed.write_bytes(pack(path.read_bytes(), {}))
    explanation = explain(packed, 1, 2)
    assert (explanation.file, explanation.size_bytes) == (str(packed), packed.stat().st_size)
    assert [node.name for node in explanation.nodes] != []
    assert explanation.operators().keys() == explain(path, 1, 2).operators().keys()


def test_weights_may_be_in_a_file_beside(tmp_path):
    path = written(tmp_path / "float.onnx", RELU)
    beside = tmp_path / "beside.onnx"
    onnx.save(
        onnx.load(path), beside, save_as_external_data=True, location="weights", size_threshold=0
    )
    assert explain(beside, 1, 2).operators().keys() == explain(path, 1, 2).operators().keys()


def test_the_command_says_all_parts_or_json(tmp_path, capsys):
    path = quantized(written(tmp_path / "float.onnx", RELU, 24))
    arguments = ["explain", str(path), "--threads", "1", "--repeats", "2"]
    with pytest.raises(SystemExit):
        cli.app([*arguments, "--all"])
    out = capsys.readouterr().out
    for part in (
        f"int8.onnx: {path.stat().st_size:,} bytes, int8, ", "1 thread, onnxruntime", "p10",
        "QLinearConv", "QGemm", "image/quantized", "1x16x16x3", "Still in float: nothing",
        "Only moves data: ", "Widths that miss the kernel's block: ",
    ):  # fmt: skip
        assert part in out
    with pytest.raises(SystemExit):
        cli.app([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["precision"] == "int8"
    assert found["nodes"][0]["ms"] >= found["nodes"][-1]["ms"]
    assert set(found["operators"]) == {node["operator"] for node in found["nodes"]}
