import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers import reference_decoder
from helpers.artifacts import packed, quantized, thinned
from helpers.tiny_networks import NETWORKS
from secateur.artifact.container import Section, read_sections, write_sections
from secateur.artifact.packing import TAGS, _squeezed, _unsqueezed, pack, read_about, unpack
from secateur.artifact.stream import Writer
from secateur.errors import ArtifactError

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny.sec"
GOLDEN_SHA256 = "1c7bf4acd48c6e50508e92f0d23624fd8b9280255a4bac0795ac7e6e84174c64"


@pytest.mark.parametrize("name", list(NETWORKS))
def test_unpacked_it_is_what_was_packed(name):
    data = packed(name)
    found = unpack(data)
    assert found.onnx == quantized(name)
    assert found.about["made"] == "for a test"
    assert found.about["onnx_bytes"] == len(quantized(name))
    assert len(data) < 0.6 * len(quantized(name))


def test_any_onnx_file_can_be_packed():
    """Float weights of both signs, types that are not coded, numbers in fields, nothing at all."""
    tensors = [
        numpy_helper.from_array(np.random.default_rng(0).standard_normal((9, 9), np.float32), "f"),
        numpy_helper.from_array(np.arange(3, dtype=np.float64), "d"),
        numpy_helper.from_array(np.array([2**31 - 1, -(2**31)], np.int32), "wide"),
        onnx.helper.make_tensor("fields", onnx.TensorProto.INT64, [2], [1, -1]),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "empty"),
    ]
    for some in (tensors, []):
        graph = onnx.helper.make_graph([], "g", [], [], some)
        data = onnx.helper.make_model(graph).SerializeToString()
        assert unpack(pack(data, {})).onnx == data


def test_a_file_of_version_1_decodes_as_it_did_when_it_was_written():
    """Written once; on every platform, by every later version, it has to give these bytes."""
    golden = GOLDEN.read_bytes()
    onnx_bytes = unpack(golden).onnx
    assert hashlib.sha256(onnx_bytes).hexdigest() == GOLDEN_SHA256
    again, before = (read_sections(data, TAGS) for data in (pack(onnx_bytes, {}), golden))
    assert again["CODE"] == before["CODE"]  # the others are as liblzma's version sees fit
    assert read_about(before)["made"] == "for a test"


@pytest.mark.parametrize("name", ["shufflenet", "alexnet"])
def test_a_decoder_written_from_the_page_decodes_it(name):
    assert reference_decoder.decode(packed(name)) == quantized(name)
    few = thinned(quantized(name))
    assert reference_decoder.decode(pack(few, {})) == few


def test_the_scale_of_a_bias_takes_no_bits():
    line = _unsqueezed(read_sections(packed("mobilenet"), TAGS)["REST"]).partition(b"\n")[0]
    products = [row for row in json.loads(line) if len(row) == 5]
    model = onnx.load_from_string(quantized("mobilenet"))
    biases = [t for t in model.graph.initializer if t.name.endswith("/bias/scale")]
    assert len(products) >= len(biases) > 5


def parts(name="mobilenet"):
    return read_sections(packed(name), TAGS)


def with_part(tag, section):
    return write_sections(parts() | {tag: section})


def with_table(change):
    line, _, rest = _unsqueezed(parts()["REST"]).partition(b"\n")
    rows = json.loads(line)
    change(rows)
    return with_part("REST", _squeezed(json.dumps(rows).encode() + b"\n" + rest))


def test_what_is_too_large_is_refused_before_it_is_unpacked():
    with pytest.raises(ArtifactError, match=r"larger than allowed.*at most 1,000 bytes.*limit"):
        unpack(packed("mobilenet"), limit=1000)
    with pytest.raises(ArtifactError, match="larger than allowed"):
        unpack(with_part("CODE", Section(b"", 2**32 - 1)))
    with pytest.raises(ArtifactError, match="larger than allowed"):
        unpack(with_part("ABOU", Section(b"", 2**32 - 1)))


def test_a_bomb_does_not_go_off():
    bomb = _squeezed(bytes(2**24))
    with pytest.raises(ArtifactError, match="expected 100 bytes once unpacked, found 101"):
        unpack(with_part("REST", Section(bomb.stored, 100)))


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.pop(),
        lambda rows: rows.append(rows[-1]),
        lambda rows: rows.append([0, 3, [2**40]]),
        lambda rows: rows.append([0, 3, [2**20, 2**20]]),
        lambda rows: rows.append([0, 3, [0]]),
        lambda rows: rows.append([-1, 3, [1]]),
        lambda rows: rows.append([0, 99, [1]]),
        lambda rows: rows.append([0, 3, [1] * 9]),
        lambda rows: rows.append([0, 1, [1], 0, 10**6]),
        lambda rows: rows.append([0, 1, [1], 0, len(rows) - 1]),
        lambda rows: rows.append([0, 1, [1], 0]),
        lambda rows: next(row for row in rows if len(row) == 5).append(10**6),
        lambda rows: rows.append([10**9, 3, [1]]),
        lambda rows: rows.append("text"),
        lambda rows: rows.append([0, 3, [1.5]]),
        lambda rows: rows.append([0, True, [1]]),
    ],
)
def test_a_table_that_does_not_fit_is_refused(change):
    with pytest.raises(ArtifactError, match="damaged table of tensors"):
        unpack(with_table(change))


def test_tensors_are_counted_before_they_are_read():
    with pytest.raises(ArtifactError, match="more than 16384 tensors"):
        unpack(with_table(lambda rows: rows.extend([["text"]] * 2**14)))


def test_a_table_too_deep_to_read_is_refused():
    rest = b"[" * 100_000 + b"\n"
    with pytest.raises(ArtifactError, match="damaged table"):
        unpack(with_part("REST", _squeezed(rest)))


def test_a_network_other_than_the_one_packed_is_refused():
    code = parts()["CODE"]
    other = code.stored[:40] + bytes([code.stored[40] ^ 1]) + code.stored[41:]
    with pytest.raises(ArtifactError, match=r"another network|damaged stream"):
        unpack(with_part("CODE", Section(other, code.size)))
    with pytest.raises(ArtifactError, match="another network"):
        unpack(with_part("ABOU", _squeezed(b'{"onnx_sha256": "0"}')))


@pytest.mark.parametrize("about", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_says_nothing_of_itself_is_refused(about):
    with pytest.raises(ArtifactError, match=r"damaged section \(ABOU\)"):
        unpack(with_part("ABOU", _squeezed(about)))


def test_sections_that_are_not_compressed_are_refused():
    for tag in ("ABOU", "REST"):
        with pytest.raises(ArtifactError, match="damaged section"):
            unpack(with_part(tag, Section(b"\x01\x02\x03", 3)))


def test_no_onnx_file_is_one_line():
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        pack(b"\xff\xff\xff", {})


def test_an_empty_stream_is_no_network():
    with pytest.raises(ArtifactError):
        unpack(with_part("CODE", Section(Writer().to_bytes(), parts()["CODE"].size)))
