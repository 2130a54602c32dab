import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.onnx_graphs import pointwise
from secateur.errors import DataError, SecateurError
from secateur.quantization.calibrate import calibrate
from secateur.quantization.histogram import Histogram

RNG = np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    pointwise(tmp_path / "float.onnx", np.eye(3, dtype=np.float32) * 2)
    return tmp_path / "float.onnx"


def test_minmax_is_the_extremes_of_every_tensor_over_all_batches(path):
    # More images than one chunk holds, extremes in different batches.
    batches = [RNG.uniform(-1, 1, (count, 3, 8, 8)).astype(np.float32) for count in (11, 1, 9)]
    batches[0][10, 0, 0, 0], batches[2][8, 2, 7, 7] = -3, 5
    ranges = calibrate(path, iter(batches), "minmax", 50)
    assert list(ranges) == ["image", "conv", "pool", "flat"]
    assert ranges["image"] == (-3, 5)
    assert ranges["conv"] == (-6, 10)
    means = 2 * np.concatenate(batches).mean((2, 3))
    assert ranges["pool"] == pytest.approx((means.min(), means.max()), abs=1e-6)


def test_percentile_leaves_out_both_tails(path):
    batches = [RNG.standard_normal((16, 3, 8, 8)).astype(np.float32) for _ in range(4)]
    batches[1][0, 0, 0, 0] = 100
    low, high = calibrate(path, batches, "percentile", 99)["image"]
    expected = np.percentile(np.concatenate(batches), [0.5, 99.5])
    assert (low, high) == pytest.approx(tuple(expected), abs=100 / 4096)


@settings(deadline=None, max_examples=40)
@given(
    pieces=st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), min_size=1, max_size=5
    ),
    share=st.floats(0.5, 1),
)
def test_histogram_counts_every_value_once(pieces, share):
    histogram = Histogram()
    for piece in pieces:
        histogram.add(np.array(piece, np.float32))
    values = np.sort(np.concatenate([np.array(piece, np.float32) for piece in pieces]))
    low, high = histogram.central(share)
    slack = 2 * max(abs(values).max(), 1e-30) / Histogram.HALF * 2
    tail = len(values) * (1 - share) / 2
    assert (values < low - slack).sum() <= tail
    assert (values > high + slack).sum() <= tail
    assert values[0] <= low <= high <= values[-1]
    assert histogram._counts.sum() == len(values)


def test_a_hundred_percent_is_minmax(path):
    batches = [RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)]
    assert calibrate(path, batches, "percentile", 100) == calibrate(path, batches, "minmax", 100)


def test_no_images(path):
    for nothing in ([], [np.zeros((0, 3, 8, 8), np.float32)]):
        with pytest.raises(DataError, match="no images"):
            calibrate(path, nothing, "minmax", 100)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_names_its_tensor(path, bad):
    images = np.zeros((1, 3, 8, 8), np.float32)
    images[0, 0, 0, 0] = bad
    with pytest.raises(SecateurError, match="tensor image"):
        calibrate(path, [images], "minmax", 100)
    images[0, 0, 0, 0] = 3e38  # finite itself, but not when doubled
    with pytest.raises(SecateurError, match="tensor conv"):
        calibrate(path, [images], "minmax", 100)


def test_percentile_out_of_range(path):
    with pytest.raises(ValueError, match="percentile"):
        calibrate(path, [], "percentile", 0)


def test_one_color_all_over_is_refused(path):
    with pytest.raises(DataError, match=r"every pixel.*tensor image"):
        calibrate(path, [np.full((4, 3, 8, 8), 0.5, np.float32)], "minmax")


def test_a_dead_layer_is_named(path, tmp_path, capsys):
    pointwise(tmp_path / "dead.onnx", np.zeros((3, 3), np.float32))
    images = RNG.uniform(-1, 1, (4, 3, 8, 8)).astype(np.float32)
    calibrate(tmp_path / "dead.onnx", [images], "minmax")
    assert "conv is 0 everywhere on the calibration images" in capsys.readouterr().err
    calibrate(path, [images], "minmax")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_methods_that_weigh_clip_an_outlier_for_all_tensors_of_one_scale(path, method):
    images = RNG.standard_normal((512, 3, 8, 8)).astype(np.float32)
    images[0, 0, 0, 0] = 30
    ranges = calibrate(path, [images], method)
    assert ranges["image"][1] < 30
    assert ranges["pool"] == ranges["flat"]
    low, high = calibrate(path, [images], "minmax")["conv"]
    assert low <= ranges["conv"][0] < ranges["conv"][1] <= high
