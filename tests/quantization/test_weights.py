import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers.onnx_graphs import pointwise
from secateur.quantization.qdq import quantize_onnx
from secateur.quantization.weights import (
    PAIR,
    WeightRule,
    choose_scales,
    few_digits,
    is_saturation_free,
    round_weight,
    without_saturation,
)

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(-100, 100, width=32),
)


def largest_pair(rows):
    """The definition, pair by pair."""
    sums = [
        abs(int(a) + int(b))
        for row in rows
        for i, a in enumerate(row)
        for b in row[i + 1 :]
        if (a > 0) == (b > 0) and a and b
    ]
    return max(sums, default=0)


@settings(deadline=None, max_examples=200)
@given(weight=weights, per_channel=st.booleans())
def test_no_pair_of_one_sign_can_overflow_16_bits(weight, per_channel):
    rule = WeightRule(per_channel=per_channel)
    integers = round_weight(weight, choose_scales(weight, rule), rule)
    assert largest_pair(integers) <= PAIR
    assert 255 * PAIR < 2**15
    assert is_saturation_free(integers)
    assert np.abs(integers).max() <= 127


@settings(deadline=None, max_examples=200)
@given(rows=hnp.arrays(np.int32, (4, 6), elements=st.integers(-127, 127)))
def test_clipping_takes_no_more_than_it_must(rows):
    clipped = without_saturation(rows)
    assert largest_pair(clipped) <= PAIR
    assert (np.sign(clipped) * np.sign(rows) >= 0).all()
    assert (np.abs(clipped) <= np.abs(rows)).all()
    changed = clipped != rows
    assert (np.abs(clipped[changed]) >= PAIR // 2).all()
    for before, after in zip(rows, clipped, strict=True):
        if largest_pair([before]) <= PAIR:
            assert (before == after).all()
    assert is_saturation_free(rows) == (largest_pair(rows) <= PAIR)


def test_one_outlier_keeps_nearly_all_of_its_resolution():
    weight = np.array([[127, 1, -1, 0.5]], np.float32)

    def scale(weight, rule=None):
        return float(choose_scales(weight, rule or WeightRule()).delta[0])

    assert 128 / 127 <= scale(weight) < 1.008 * 128 / 127
    assert 2 <= scale(weight[:, [0, 0, 1]]) < 1.008 * 2
    assert 1 <= scale(weight, WeightRule(saturation_free=False)) < 1.008


def test_scales_share_their_lower_half():
    given = np.geomspace(1e-12, 1e5, 1000).astype(np.float32)
    found = few_digits(given)
    assert ((found >= given) & (found < 1.008 * given)).all()
    assert len(np.unique(found.view(np.uint32) & 0xFFFF)) == 1
    assert (found.view(np.uint32) & 1).all()
    assert (few_digits(found) == found).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_few_bits_get_the_scale_of_least_squared_error(bits):
    weight = np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32)
    rule = WeightRule(bits)
    found = choose_scales(weight, rule)
    for row, delta in zip(weight, found.delta, strict=True):

        def error(step, row=row):
            high = rule.grid.high
            return np.square(np.clip(np.rint(row / step), -high, high) * step - row).sum()

        tried = np.linspace(0.3, 1, 200) * np.abs(row).max() / rule.grid.high
        # Scales are tried in steps of 2.5 %.
        assert error(delta) <= 1.05 * min(error(step) for step in tried)


def test_per_tensor_has_one_scale_for_the_widest_row():
    weight = np.array([[1.0, 0.1], [10.0, -0.1]], np.float32)
    affine = choose_scales(weight, WeightRule(per_channel=False))
    assert affine.delta.shape == ()
    assert affine.axis is None
    assert affine.delta == choose_scales(weight, WeightRule()).delta.max()


def test_default_kernels_are_exact_on_files_free_of_saturation(tmp_path):
    """Loaded as anyone would load it, on any processor, the file computes its own integers."""
    random = np.random.default_rng(0)
    weight = np.abs(random.standard_normal((16, 64))).astype(np.float32)  # sums that only grow
    pointwise(tmp_path / "float.onnx", weight)
    top = float(weight.sum(1).max())
    ranges = {"image": (0.0, 1.0)} | dict.fromkeys(("conv", "pool", "flat"), (0.0, top))
    quantize_onnx(tmp_path / "float.onnx", ranges, tmp_path / "int8.onnx")
    image = np.ones((1, 64, 8, 8), np.float32)
    found = onnxruntime.InferenceSession(tmp_path / "int8.onnx").run(None, {"image": image})[0]
    rounded, identity = (
        choose_scales(w, WeightRule()).dequantize(
            round_weight(w, choose_scales(w, WeightRule()), WeightRule())
        )
        for w in (weight, np.eye(16, dtype=np.float32))
    )
    real = identity @ np.minimum(rounded.sum(1), top)
    assert found[0] == pytest.approx(real, abs=1.01 * top / 255)


def test_integers_are_kept_from_saturating_whatever_the_scale():
    weight = np.array([[1.0, 1.0, -0.2]], np.float32)
    narrow = choose_scales(weight, WeightRule(saturation_free=False))
    assert round_weight(weight, narrow, WeightRule()).tolist() == [[64, 64, -25]]
    assert round_weight(weight, narrow, WeightRule(saturation_free=False)).max() >= 126
