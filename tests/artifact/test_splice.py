import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from secateur.artifact.splice import cut_out, find_tensors, spread_out
from secateur.errors import ArtifactError

TENSORS = [
    numpy_helper.from_array(np.arange(300, dtype=np.int8).reshape(3, 100), "w"),
    numpy_helper.from_array(np.float32(0.5).reshape(()), "s"),
    onnx.helper.make_tensor("in fields", onnx.TensorProto.FLOAT, [2], [1.0, 2.0]),
    numpy_helper.from_array(np.zeros((0, 4), np.float32), "empty"),
]
MODEL = onnx.helper.make_model(
    onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["w"], ["y"], name="n")], "g", [], [], TENSORS
    ),
    producer_name="somebody",
).SerializeToString()


def test_every_tensor_is_found_where_it_is():
    cuts = find_tensors(MODEL)
    assert [(cut.name, cut.kind, cut.shape) for cut in cuts] == [
        ("w", onnx.TensorProto.INT8, (3, 100)),
        ("s", onnx.TensorProto.FLOAT, ()),
        ("empty", onnx.TensorProto.FLOAT, (0, 4)),
    ]
    for cut in cuts:
        tensor = next(t for t in TENSORS if t.name == cut.name)
        assert MODEL[cut.start : cut.end] == tensor.raw_data


def test_what_is_cut_out_is_put_back():
    cuts = find_tensors(MODEL)
    rest = cut_out(MODEL, cuts)
    assert len(rest) == len(MODEL) - sum(cut.end - cut.start for cut in cuts)
    starts = [cut.start for cut in cuts]
    gaps = [s - e for s, e in zip(starts, [0, *(cut.end for cut in cuts)], strict=False)]
    back = spread_out(rest, [(gap, c.end - c.start) for gap, c in zip(gaps, cuts, strict=True)])
    for cut in cuts:
        assert not any(back[cut.start : cut.end])
        back[cut.start : cut.end] = MODEL[cut.start : cut.end]
    assert back == MODEL
    assert spread_out(MODEL, []) == MODEL


def test_fields_in_another_order_are_found_too():
    """Protobuf leaves the order to the writer, and packs repeated numbers or does not."""
    tensor = onnx.TensorProto(dims=[2, 3], data_type=3, raw_data=b"abcdef", name="t")
    fields = {
        "raw": b"\x4a\x06abcdef", "name": b"\x42\x01t", "type": b"\x10\x03",
        "dims": b"\x08\x02\x08\x03", "packed": b"\x0a\x02\x02\x03",
    }  # fmt: skip
    for order in (("raw", "name", "type", "dims"), ("packed", "type", "raw", "name")):
        raw = b"".join(fields[name] for name in order)
        assert onnx.TensorProto.FromString(raw) == tensor
        graph = b"\x2a" + bytes([len(raw)]) + raw
        (cut,) = find_tensors(b"\x3a" + bytes([len(graph)]) + graph)
        assert (cut.name, cut.kind, cut.shape) == ("t", 3, (2, 3))


@given(st.binary(max_size=60))
def test_any_bytes_end_in_a_list_or_one_error(data):
    try:
        for cut in find_tensors(data):
            assert 0 <= cut.start <= cut.end <= len(data)
    except ArtifactError as error:
        assert "not an ONNX file" in str(error)  # noqa: PT017


@pytest.mark.parametrize("data", [b"\x3a\x7f", b"\x80" * 11, b"\x3b", b"\x3a\x03\x2a\x09x"])
def test_broken_fields_are_errors(data):
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        find_tensors(data)
