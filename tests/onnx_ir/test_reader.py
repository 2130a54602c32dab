"""Reading a stranger's ONNX file: external data from its folder only, and within bounds."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.errors import StoreError
from secateur.onnx_ir import reader
from secateur.onnx_ir.reader import read_onnx, read_self_contained

WEIGHT = np.arange(400, dtype=np.float32).reshape(20, 20)


def external(folder, **entries):
    """Write a file whose one tensor is in another file; return its path."""
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=WEIGHT.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    node = helper.make_node("MatMul", ["image", "weight"], ["logits"])
    ends = [helper.make_tensor_value_info(name, 1, [1, 20]) for name in ("image", "logits")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [tensor])
    path = folder / "net.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_external_data_is_read_into_the_file(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "all.bin").write_bytes(b"1234" + WEIGHT.tobytes() + b"rest")
    path = external(tmp_path, location="weights/all.bin", offset=4, length=WEIGHT.nbytes)
    data, model = read_self_contained(path)
    for found in (model, onnx.load_model_from_string(data)):
        assert np.array_equal(numpy_helper.to_array(found.graph.initializer[0]), WEIGHT)


def test_a_file_without_external_data_keeps_its_bytes(tmp_path):
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(WEIGHT, "inner"))
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, [20, 20])])
    (tmp_path / "net.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    data, model = read_self_contained(tmp_path / "net.onnx")
    assert data == (tmp_path / "net.onnx").read_bytes()
    assert model == onnx.load(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../secret"},
        {"location": "{outside}/secret"},
        {"location": "link"},
        {"location": "fifo"},
        {"location": "none"},
        {"location": ""},
        {"location": "short", "offset": 1, "length": 1600},
        {"location": "short", "offset": -4, "length": 4},
        {"location": "short", "offset": "9" * 5000},
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path, entries):
    outside, folder = tmp_path, tmp_path / "net"
    folder.mkdir()
    (outside / "secret").write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to(outside / "secret")
    (folder / "short").write_bytes(WEIGHT.tobytes())
    os.mkfifo(folder / "fifo")
    entries = {key: str(value).format(outside=outside) for key, value in entries.items()}
    with pytest.raises(StoreError, match=r"cannot read the external data of tensor 'weight'"):
        read_onnx(external(folder, **entries))


def test_external_data_counts_toward_the_limit(tmp_path):
    (tmp_path / "all.bin").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path, location="all.bin")
    size = path.stat().st_size + WEIGHT.nbytes
    read_onnx(path, size)
    with pytest.raises(StoreError, match=r"larger than allowed.*--limit"):
        read_onnx(path, size - 1)
    with pytest.raises(StoreError, match=r"larger than allowed.*--limit"):
        read_onnx(path, 10)


def test_counts_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "all.bin").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path, location="all.bin")
    for bound in ("MOST_NODES", "MOST_TENSORS"):
        with monkeypatch.context() as patch:
            patch.setattr(reader, bound, 0)
            with pytest.raises(StoreError, match="too many"):
                read_onnx(path)


def test_deep_graphs_are_refused(tmp_path):
    graph = helper.make_graph([], "inner", [], [])
    for _ in range(20):
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], [], then_branch=graph)], "g", [], []
        )
    (tmp_path / "net.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(StoreError, match="nested"):
        read_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x08\x01", b"\xff" * 100])
def test_what_is_not_onnx_is_one_line(tmp_path, data):
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(StoreError, match=r"ONNX file"):
        read_onnx(tmp_path / "net.onnx")
