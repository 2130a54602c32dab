import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from helpers.onnx_graphs import pointwise
from secateur import environment
from secateur.errors import SecateurError
from secateur.quantization.qdq import quantize_onnx
from secateur.runtimes import RUNTIMES, OnnxRuntime, OpenVino, Runtime, open_file, session_options


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


def files(folder):
    """A float file of random weights and its int8 version, with an image for them."""
    random = np.random.default_rng(0)
    pointwise(folder / "float.onnx", random.standard_normal((16, 8)).astype(np.float32))
    ranges = {"image": (-4.0, 4.0)} | dict.fromkeys(("conv", "pool", "flat"), (-4.0, 4.0))
    quantize_onnx(folder / "float.onnx", ranges, folder / "int8.onnx")
    image = random.standard_normal((6, 8, 1, 1)) + random.standard_normal((6, 8, 8, 8)) / 4
    return image.astype(np.float32)


@pytest.mark.parametrize(("name", "close"), [("float.onnx", 1e-5), ("int8.onnx", 0.05)])
def test_runtimes_agree(name, close, tmp_path):
    pytest.importorskip("openvino")
    image = files(tmp_path)
    theirs, ours = (open_file(tmp_path / name, 1, runtime) for runtime in RUNTIMES)
    assert (ours.name, ours.version[:2]) == ("openvino", "20")
    for batch in (1, 6):
        expected, found = theirs.run(image[:batch]), ours.run(image[:batch])
        assert found == pytest.approx(expected, abs=close)
        assert (found.argmax(1) == expected.argmax(1)).all()
        assert found.dtype == np.float32
    compiled = dict(ours._requests)
    assert ours.run(image[:1]) == pytest.approx(theirs.run(image[:1]), abs=close)
    assert ours._requests == compiled  # one for each batch, found again
    assert len(compiled) == 2


def test_results_of_openvino_stay(tmp_path):
    pytest.importorskip("openvino")
    image = files(tmp_path)
    runtime = OpenVino(tmp_path / "float.onnx", 1)
    first = runtime.run(image[:1])
    kept = first.copy()
    runtime.run(image[1:2])
    assert (first == kept).all()


def test_openvino_says_what_it_cannot_run_in_one_line(tmp_path, capfd):
    pytest.importorskip("openvino")
    (tmp_path / "corrupt.onnx").write_bytes(b"not a network")
    for name in ("missing.onnx", "corrupt.onnx"):
        with pytest.raises(SecateurError, match=name) as caught:
            OpenVino(tmp_path / name, threads=1)
        assert "\n" not in str(caught.value)
    files(tmp_path)
    with pytest.raises(SecateurError, match=r"float\.onnx\).*channel"):
        OpenVino(tmp_path / "float.onnx", threads=1).run(np.ones((1, 3, 8, 8), np.float32))
    assert capfd.readouterr() == ("", "")


def test_openvino_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[openvino\]'"):
        open_file(tmp_path / "float.onnx", 1, "openvino")


def test_images_that_do_not_fit_are_one_line(tmp_path):
    pointwise(tmp_path / "f.onnx", np.eye(3, dtype=np.float32))
    with pytest.raises(SecateurError, match="ONNX Runtime cannot run the network"):
        OnnxRuntime(tmp_path / "f.onnx", 1).run(np.zeros((1, 7, 8, 8), np.float32))


def test_unknown_runtime_names_the_known_ones(tmp_path):
    with pytest.raises(SecateurError, match="onnxruntime, openvino, found tensorrt"):
        open_file(tmp_path / "float.onnx", 1, "tensorrt")


@pytest.mark.parametrize(("value", "exact"), [("true", False), ("false", True), (None, True)])
def test_metadata_decides_whether_sums_are_kept_from_saturating(
    value, exact, tmp_path, monkeypatch
):
    monkeypatch.setattr(environment, "processor", lambda: "Some CPU, 2 cores, avx2")
    files(tmp_path)
    model = onnx.load(tmp_path / "int8.onnx")
    del model.metadata_props[:]
    if value is not None:
        onnx.helper.set_model_props(model, {"saturation_free": value})
    onnx.save(model, tmp_path / "int8.onnx")
    assert is_exact(OnnxRuntime(tmp_path / "int8.onnx", 1)._session.get_session_options()) == exact


@pytest.mark.parametrize(
    ("processor", "may_saturate"),
    [
        ("Some CPU, 2 cores, avx2 avx512f", True),
        ("arm64", True),  # what its instructions are is not known
        ("Some CPU, 2 cores, avx2 avx512f avx512_vnni", False),
        ("Some CPU, 2 cores, avx2 avx_vnni", False),
    ],
)
def test_slow_exact_kernels_are_asked_for_where_quick_ones_saturate(
    processor, may_saturate, monkeypatch
):
    monkeypatch.setattr(environment, "processor", lambda: processor)
    assert is_exact(session_options(1)) == may_saturate
    assert not is_exact(session_options(1, saturation_free=True))


def is_exact(options):
    try:
        return options.get_session_config_entry("session.x64quantprecision") == "1"
    except RuntimeError:  # there is no such entry
        return False
