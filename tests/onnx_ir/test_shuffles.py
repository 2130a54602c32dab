import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision.models

import secateur
from helpers.tiny_networks import images, settled, shufflenet
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import read_model, write_model
from secateur.onnx_ir.padding import pad_widths
from secateur.onnx_ir.shuffles import straighten
from secateur.quantization.calibrate import calibrate
from secateur.quantization.qdq import quantize_onnx

SHAPE = (3, 8, 8)
LOW, HIGH = np.float32(0), np.float32(0.6)

# Twelve channels that a convolution makes, and the same in another order.
MAKE = "a = Conv(image, w_make, b_make) x = Clip(a, low, high) "
SHUFFLE = "r = Reshape(x, apart) t = Transpose<perm=[0, 2, 1, 3, 4]>(r) s = Reshape(t, together) "
READ = "y = Conv(s, w_read, b_read) "
POOL = "pooled = GlobalAveragePool(y) logits = Flatten<axis=1>(pooled)"
CONSTANTS = {
    "w_make": (12, 3, 3, 3), "b_make": (12,), "low": LOW, "high": HIGH,
    "apart": [-1, 3, 4, 6, 6], "together": [-1, 12, 6, 6], "w_read": (5, 12, 1, 1), "b_read": (5,),
    "w_each": (12, 1, 3, 3), "b_each": (12,), "w_half": (5, 6, 1, 1), "w_pairs": (12, 6, 1, 1),
    "w_square": (12, 12, 1, 1), "w_double": (5, 24, 1, 1), "w_two": (24, 1, 1, 1),
    "w_linear": (5, 108), "rows": [-1, 108], "low_part": LOW + 0.1, "low_side": LOW - 0.1,
    "six": [6], "twelve": [12], "one": [1],
}  # fmt: skip


def graph(body):
    """A graph of ``body``, with the constants above: random weights for shapes."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> network (float[N, 3, 8, 8] image) => '
        f"(float[N, M] logits) {{ {body} }}"
    )
    generator = np.random.default_rng(0)
    read = {name for node in model.graph.node for name in node.input}
    for name, value in CONSTANTS.items():
        drawn = generator.normal(size=value).astype(np.float32) if type(value) is tuple else value
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(drawn), name))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}_{number}"
    onnx.helper.set_model_props(model, {"classes": "5"})
    return model


def session(model, optimized=""):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def assert_same(model, other, shape=SHAPE):
    onnx.checker.check_model(other, full_check=True)
    x = images(shape, 3).numpy()
    expected, found = (session(m).run(None, {"image": x})[0] for m in (model, other))
    assert np.ptp(expected) > 0.1
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    names = [node.name for node in other.graph.node]
    assert len(set(names)) == len(names)
    for part in ("metadata_props", "opset_import", "ir_version"):
        assert getattr(other, part) == getattr(model, part)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def assert_straight(model, shape=SHAPE):
    """Straighten; nothing may shuffle any more."""
    before = model.SerializeToString(deterministic=True)
    straight = straighten(model)
    assert model.SerializeToString(deterministic=True) == before
    assert "Transpose" in kinds(model)
    assert not {"Transpose", "Slice"} & set(kinds(straight))
    shuffles = kinds(model).count("Transpose")
    assert kinds(straight).count("Reshape") == kinds(model).count("Reshape") - 2 * shuffles
    assert_same(model, straight, shape)
    assert straighten(model) == straight
    return straight


def assert_left_alone(model):
    assert straighten(model).SerializeToString() == model.SerializeToString()
    assert_same(model, straighten(model))


def export(network, shape, folder):
    """The float graph of ``network``, its weights drawn anew and its shuffles left."""
    path = folder / "float.onnx"
    export_onnx(settled(network, shape), shape, path, {"classes": "10"}, straight=False)
    return read_model(path)


def test_every_shuffle_of_shufflenet_goes_and_its_depthwise_layers_are_padded(tmp_path):
    shape = (3, 64, 64)
    model = export(torchvision.models.shufflenet_v2_x1_0(num_classes=10), shape, tmp_path)
    straight = assert_straight(model, shape)
    # One split and one concatenation a block: each channel is moved when it is read, not before.
    assert kinds(straight).count("Concat") == kinds(straight).count("Split") == 16
    padded = pad_widths(straight, 16)
    assert_same(straight, padded, shape)
    assert kinds(padded) == kinds(straight)
    assert set(widths(straight)) == {24, 58, 116, 232}
    # Those in front of a stage read what was moved, or pooled.
    assert [width for width in widths(padded) if width % 16] == [24, 116, 232]
    assert set(widths(padded)) == {24, 64, 116, 128, 232, 240}


def test_every_shuffle_of_a_pruned_shufflenet_goes(tmp_path):
    shape = (3, 28, 28)
    network = shufflenet()
    plan = secateur.plan_removal(network, torch.zeros(1, *shape), 0.3, "random", round_to=1)
    assert_straight(export(secateur.remove(network, plan), shape, tmp_path), shape)


def test_integer_kernels_run_the_straight_graph_without_moving_pixels(tmp_path):
    shape = (3, 28, 28)
    model = pad_widths(straighten(export(shufflenet(), shape, tmp_path)), 8)
    path, quantized, optimized = (tmp_path / f"{name}.onnx" for name in ("s", "q", "o"))
    write_model(model, path)
    x = images(shape, 4).numpy()
    quantize_onnx(path, calibrate(path, [x], "minmax", 100.0), quantized)
    found = session(read_model(quantized), optimized).run(None, {"image": x})[0]
    expected = session(model).run(None, {"image": x})[0]
    assert np.abs(found - expected).max() < 0.1 * np.ptp(expected)
    # To channels last at the start, and back at the end.
    assert kinds(onnx.load(optimized)).count("Transpose") <= 2


READERS = {
    "convolution": READ + POOL,
    "depthwise": "d = Conv<group=12>(s, w_each, b_each) e = Relu(d) y = Conv(e, w_read) " + POOL,
    "two at once": (
        "d = Conv<group=12>(s, w_each) e = Conv(d, w_read) f = GlobalAveragePool(e) "
        "g = Conv(s, w_read) y = Add(f, g) " + POOL
    ),
    "pool, flatten, linear": (
        "p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(s) f = Flatten<axis=1>(p) "
        "logits = Gemm<transB=1>(f, w_linear)"
    ),
    "pool, reshape, linear": (
        "p = AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(s) f = Reshape(p, rows) "
        "logits = Gemm<transB=1>(f, w_linear)"
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_shuffle_goes_into_the_weights_of_what_reads_it(reader):
    straight = assert_straight(graph(MAKE + SHUFFLE + READERS[reader]))
    assert not {"Split", "Concat"} & set(kinds(straight))


def test_slices_are_pieces_and_what_nobody_reads_goes_nowhere():
    read = "l = Slice(s, six, twelve, one, one) y = Conv(l, w_half) "
    straight = assert_straight(graph(MAKE + SHUFFLE + read + POOL))
    split = next(node for node in straight.graph.node if node.op_type == "Split")
    assert len(split.output) == 2
    assert "Concat" not in kinds(straight)


MOVED_MAKERS = {
    "pool": "a = Conv(image, w_make, b_make) b = MaxPool<kernel_shape=[1, 1]>(a) x = Relu(b) ",
    "depthwise": (
        "a = Conv<pads=[1, 1, 1, 1]>(image, w_make, b_make) b = Relu(a) "
        "x = Conv<group=12>(b, w_each, b_each) "
    ),
}


@pytest.mark.parametrize("maker", MOVED_MAKERS)
def test_a_split_goes_into_all_weights_that_make_its_channels(maker):
    read = (
        "l, h = Split<axis=1, num_outputs=2>(s) c = Conv(l, w_half) d = Conv(h, w_half) "
        "e = Relu(d) y = Add(c, e) "
    )
    straight = assert_straight(graph(MOVED_MAKERS[maker] + SHUFFLE + read + POOL))
    assert kinds(straight).count("Split") == 1


def test_weights_that_others_read_are_copied_and_a_tensor_read_twice_has_one_order():
    read = "c = Conv(s, w_read, b_read) d = Conv(x, w_read, b_read) e = Relu(d) y = Add(c, e) "
    straight = assert_straight(graph(MAKE + SHUFFLE + read + POOL))
    weights = {node.input[1] for node in straight.graph.node if node.op_type == "Conv"}
    assert len(weights) == 3


STRICT = {
    "grouped convolution": "y = Conv<group=2>(s, w_pairs) ",
    "two filters a channel": "c = Conv<group=12>(s, w_two) y = Conv(c, w_double) ",
    "addition": "c = Add(s, x) y = Conv(c, w_read) ",
    "pixels": "c = DepthToSpace<blocksize=2>(s) y = Relu(c) ",
    "the same twice": "c = Concat<axis=1>(s, x) y = Conv(c, w_double) ",
    "output": "y = Relu(s) ",
    "softmax": "c = Softmax<axis=1>(s) y = Conv(c, w_read) ",
}


@pytest.mark.parametrize("reader", STRICT)
def test_a_shuffle_whose_order_matters_stays(reader):
    assert_left_alone(graph(MAKE + SHUFFLE + STRICT[reader] + POOL))


ORDERED = {
    "grouped convolution": "a = Conv(image, w_make) x = Conv<group=2>(a, w_pairs) ",
    "addition": "a = Conv(image, w_make) b = Relu(a) x = Add(a, b) ",
    "softmax": "a = Conv(image, w_make) x = Softmax<axis=1>(a) ",
}


@pytest.mark.parametrize("maker", ORDERED)
def test_a_shuffle_of_what_has_an_order_stays(maker):
    assert_left_alone(graph(ORDERED[maker] + SHUFFLE + READ + POOL))


def test_a_shuffle_of_what_others_read_before_its_activation_stays():
    read = "c = Softmax<axis=1>(a) d = Add(c, a) e = Conv(d, w_read) f = Conv(s, w_read) "
    assert_left_alone(graph(MAKE + SHUFFLE + read + "y = Add(e, f) " + POOL))


PLAIN = {
    "free": "y = Conv(s, w_read) ",
    "residual": "c = Conv(s, w_square) d = Add(c, s) y = Relu(d) ",
}


@pytest.mark.parametrize("reader", PLAIN)
def test_a_network_without_shuffles_is_the_same_to_the_byte(reader):
    moved = "l, h = Split<axis=1, num_outputs=2>(x) s = Concat<axis=1>(h, l) "
    assert_left_alone(graph(MAKE + moved + PLAIN[reader] + POOL))


def widths(model):
    """Groups of the depthwise convolutions."""
    groups = [a.i for n in model.graph.node for a in n.attribute if a.name == "group"]
    return [group for group in groups if group > 1]


EACH = "d = Conv<group=12>(x, w_each, b_each) "
AFTER = "e = Relu(d) y = Conv(e, w_read, b_read) "


@pytest.mark.parametrize(
    ("body", "width"),
    [
        (MAKE + EACH + AFTER, 16),
        (MAKE.replace("low", "low_side") + EACH + AFTER, 16),
        (MAKE.replace("low", "low_part") + EACH + AFTER, 12),
        (MAKE.replace("low, high", "low_side, low_side") + EACH + AFTER, 12),
        ("a = Conv(image, w_make) x = Sigmoid(a) " + EACH + AFTER, 12),
        (MAKE + EACH + "y = Relu(d) ", 12),
        (MAKE + EACH + "e = Sigmoid(d) y = Conv(e, w_read) ", 12),
        (MAKE + EACH + "e = Conv(x, w_read) f = GlobalAveragePool(e) g = Conv(d, w_read) "
         "y = Add(f, g) ", 12),
    ],
)  # fmt: skip
def test_channels_are_padded_where_only_convolutions_see_them(body, width):
    model = graph(body + POOL)
    before = model.SerializeToString(deterministic=True)
    padded = pad_widths(model, 8)
    assert model.SerializeToString(deterministic=True) == before
    assert widths(padded) == [width]
    assert (padded == model) == (width == 12)
    assert_same(model, padded)


def test_a_width_is_a_multiple_of_something():
    with pytest.raises(ValueError, match="positive multiple"):
        pad_widths(onnx.ModelProto(), 0)
