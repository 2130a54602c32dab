import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secateur.quantization.affine import (
    INT8_SYMMETRIC,
    UINT8,
    Grid,
    dequantize,
    from_range,
    from_tensor,
    quantize,
)

GRIDS = [UINT8, INT8_SYMMETRIC, Grid(8, signed=True), Grid(4), Grid(5, signed=True, symmetric=True)]
bounds = st.floats(-1e4, 1e4, width=32)


def test_published_example():
    assert quantize(0.75, 0.01, 128) == 203


def test_halves_go_to_even_before_the_zero_point():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    assert quantize(x, 1.0, 3).tolist() == [3, 5, 5, 3, 1]


@pytest.mark.parametrize(
    ("grid", "low", "high"),
    [
        (UINT8, 0, 255),
        (INT8_SYMMETRIC, -127, 127),
        (Grid(8, signed=True), -128, 127),
        (Grid(4, signed=True, symmetric=True), -7, 7),
    ],
)
def test_grid_bounds(grid, low, high):
    assert (grid.low, grid.high) == (low, high)


@pytest.mark.parametrize("grid", GRIDS)
@settings(deadline=None, max_examples=60)
@given(low=bounds, width=st.floats(0, 1e4, width=32), data=st.data())
def test_error_is_at_most_half_a_step_inside_the_range(grid, low, width, data):
    high = low + width
    affine = from_range(low, high, grid)
    inside = st.floats(0, 1).map(lambda share: low + share * (high - low))
    x = np.array(data.draw(st.lists(inside, min_size=1, max_size=20)), np.float64)
    error = np.abs(x - affine.dequantize(affine.quantize(x)))
    slack = 1e-6 * max(abs(low), abs(high))  # delta itself is rounded to float32
    assert (error <= affine.delta / 2 + slack).all()


@pytest.mark.parametrize("grid", GRIDS)
@settings(deadline=None, max_examples=60)
@given(low=bounds, width=st.floats(0, 1e4, width=32))
def test_zero_is_exact(grid, low, width):
    affine = from_range(low, low + width, grid)
    assert affine.delta > 0
    assert affine.dequantize(affine.quantize(np.zeros(1, np.float32))) == 0.0


def test_values_outside_saturate():
    far = np.array([-1e30, 1e30], np.float32)
    assert quantize(far, 0.1, 7).tolist() == [0, 255]


def test_per_channel_scales_are_those_of_each_channel_alone():
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    whole = from_tensor(x, INT8_SYMMETRIC, axis=1)
    assert whole.delta.shape == (4,)
    for channel in range(4):
        alone = from_tensor(x[:, channel], INT8_SYMMETRIC)
        assert whole.delta[channel] == alone.delta
        assert (whole.quantize(x)[:, channel] == alone.quantize(x[:, channel])).all()
    assert np.abs(whole.quantize(x)).max(axis=(0, 2)).tolist() == [127] * 4


@pytest.mark.parametrize("bad", [(1.0, 0.0), (np.nan, 1.0), (0.0, np.inf)])
def test_impossible_ranges_are_refused(bad):
    with pytest.raises(ValueError, match="need finite low <= high"):
        from_range(*bad, UINT8)


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="bits"):
        Grid(1)
    with pytest.raises(ValueError, match="signed"):
        Grid(8, symmetric=True)


@settings(deadline=None, max_examples=30)
@given(
    x=hnp.arrays(np.float32, 64, elements=st.floats(-300, 300, width=32)),
    delta=st.floats(2**-7, 2, width=32),
    zero_point=st.integers(0, 255),
)
def test_agrees_with_onnxruntime_bit_for_bit(x, delta, zero_point):
    ours = quantize(x, np.float32(delta), zero_point)
    feeds = {
        "x": x,
        "delta": np.array(delta, np.float32),
        "zero_point": np.array(zero_point, np.uint8),
    }
    theirs, back = _ROUND_TRIP.run(None, feeds)
    assert (ours == theirs).all()
    assert (dequantize(ours, np.float32(delta), zero_point) == back).all()


def test_divides_as_onnxruntime_does():
    # Next to a half, x / delta and x * (1 / delta) can round to different integers.
    for delta in np.random.default_rng(0).uniform(0.01, 1, 200).astype(np.float32):
        x = ((np.arange(64) + np.float32(0.5)) * delta).astype(np.float32)
        feeds = {"x": x, "delta": np.array(delta), "zero_point": np.array(0, np.uint8)}
        assert (quantize(x, delta, 0) == _ROUND_TRIP.run(["q"], feeds)[0]).all()


def _round_trip():
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "delta", "zero_point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "delta", "zero_point"], ["y"]),
    ]
    inputs = [("x", kinds.FLOAT, [64]), ("delta", kinds.FLOAT, []), ("zero_point", kinds.UINT8, [])]
    outputs = [("q", kinds.UINT8, [64]), ("y", kinds.FLOAT, [64])]
    graph = helper.make_graph(
        nodes,
        "round_trip",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


_ROUND_TRIP = _round_trip()


def test_agrees_with_torch_bit_for_bit_per_channel():
    # Torch multiplies by 1 / delta, which is the same as dividing for powers of two.
    generator = np.random.default_rng(0)
    x = (generator.integers(-4000, 4000, (6, 500)) / 64).astype(np.float32)  # many exact halves
    delta = np.float32(2.0) ** np.arange(-4, 2, dtype=np.float32)
    zero = np.zeros(6, np.int32)
    theirs = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(x), torch.from_numpy(delta), torch.from_numpy(zero), 0, -127, 127
    )
    ours = quantize(x, delta[:, None], zero[:, None], -127, 127)
    assert (dequantize(ours, delta[:, None], zero[:, None]) == theirs.numpy()).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["affine", "signed", "symmetric"])
def test_agrees_with_torch_bit_for_bit_at_every_width(bits, kind):
    # Powers of two again; and many exact halves.
    grid = Grid(bits, signed=kind != "affine", symmetric=kind == "symmetric")
    x = (np.random.default_rng(bits).integers(-4000, 4000, 3000) / 64).astype(np.float32)
    zero_point = 0 if grid.symmetric else (grid.low + grid.high) // 2 + 1
    for delta in (0.0625, 0.5, 2.0):  # the first clips at every width
        theirs = torch.fake_quantize_per_tensor_affine(
            torch.from_numpy(x), delta, zero_point, grid.low, grid.high
        )
        ours = quantize(x, np.float32(delta), zero_point, grid.low, grid.high)
        if delta == 0.0625:
            assert (ours.min(), ours.max()) == (grid.low, grid.high)
        assert (dequantize(ours, np.float32(delta), zero_point) == theirs.numpy()).all()


@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        ("INT8", Grid(8, signed=True)),
        ("UINT4", Grid(4)),
        ("INT4", Grid(4, signed=True)),
    ],
)
def test_agrees_with_onnxruntime_on_other_integers(kind, grid):
    element = getattr(onnx.TensorProto, kind)
    helper = onnx.helper
    zero = helper.make_tensor("zero", element, [], [3])
    delta = helper.make_tensor("delta", 1, [], [0.37])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "delta", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "delta", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, 1, [600]) for name in "xy"]
    graph = helper.make_graph(nodes, "round_trip", ends[:1], ends[1:], [zero, delta])
    opset = helper.make_opsetid("", 21)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    x = ((np.arange(600) / 2 - 150) * np.float32(0.37)).astype(np.float32)  # halves too
    ours = quantize(x, np.float32(0.37), 3, grid.low, grid.high)
    assert (ours.min(), ours.max()) == (grid.low, grid.high)
    assert (dequantize(ours, np.float32(0.37), 3) == session.run(None, {"x": x})[0]).all()
