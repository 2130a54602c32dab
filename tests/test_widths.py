import re

import numpy as np
import onnx
import pytest
import torch
from torchvision.models import ShuffleNetV2

import secateur
from secateur.routes import straighten
from secateur.widths import pad_widths
from test_routes import CONSTANTS, POOL, assert_same, export, graph, kinds
from tiny_networks import mobilenet, shufflenet

# Weights and biases are named by their shapes.
MAKE = "a = Conv(image, w12x3x3x3, b12) x = Relu(a) "
MORE = "b = Conv(image, w12x3x3x3_z, b12_z) z = Relu(b) "
EACH = "d = Conv<group=12>(x, w12x1x3x3, b12) "
HALVES = "l, h = Split<axis=1>(x, sizes_6_6) "
HALVES_TOO = "m, i = Split<axis=1>(z, sizes_6_6) "
READ = "y = Conv(j, w5x12x1x1, b5) "
BOUNDS = {"low": np.float32(0), "high": np.float32(6), "mid": np.float32(0.1)}
SHAPES = {"rows_108": [-1, 108], "rows_rest": [0, -1]}


def network(body):
    named = {name: name for name in re.findall(r"\w+", body)}
    shapes = {
        name: tuple(map(int, name[1:].partition("_")[0].split("x")))
        for name in named
        if re.fullmatch(r"[wb]\d+(x\d+)*(_z)?", name)
    }
    sizes = {
        name: list(map(int, name.split("_")[1:])) for name in named if name.startswith("sizes_")
    }
    return graph(body, CONSTANTS | BOUNDS | SHAPES | shapes | sizes)


def widths(model):
    """Rows of the weights of all convolutions."""
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    return [sizes[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]


def assert_padded(model, multiple, shape=(3, 8, 8)):
    """Pad; the function and the nodes stay."""
    before = model.SerializeToString(deterministic=True)
    padded = pad_widths(model, multiple)
    assert model.SerializeToString(deterministic=True) == before
    assert pad_widths(model, multiple) == padded
    assert pad_widths(model, 1) == model
    read = {name for node in padded.graph.node for name in node.input}
    assert all(name in read for node in padded.graph.node for name in node.output if "/" in name)
    assert kinds(padded) == kinds(model)
    assert_same(model, padded, shape)
    return padded


def test_shufflenet_consists_of_whole_blocks(tmp_path):
    shape = (3, 64, 64)
    module = ShuffleNetV2([2, 2, 2], [24, 116, 232, 464, 1024], num_classes=10)
    padded = assert_padded(straighten(export(module, shape, tmp_path)), 16, shape)
    assert widths(padded) == [
        32,
        *(32, 64, 64, 64, 64, 64, 64, 64),
        *(128, 128, 128, 128, 128, 128, 128, 128),
        # The last Concat, of 464, needs no zeros, so that the one before takes those of one split:
        # the other's would be read by nobody, and it stays at 232, as does what goes there whole.
        *(256, 240, 240, 240, 232, 240, 240, 232),
        1024,
    ]


@pytest.mark.parametrize("multiple", [4, 8, 16])
def test_a_pruned_shufflenet_stays_the_same_function(multiple, tmp_path):
    shape = (3, 28, 28)
    module = shufflenet()
    plan = secateur.plan_removal(module, torch.zeros(1, *shape), 0.3, "random", round_to=1)
    model = straighten(export(secateur.remove(module, plan), shape, tmp_path))
    padded = assert_padded(model, multiple, shape)
    missed = [sum(width % multiple > 0 for width in widths(m)) for m in (model, padded)]
    assert missed[1] < missed[0] / 2


def test_a_mobilenet_has_whole_blocks_where_nothing_is_added(tmp_path):
    model = export(mobilenet(), (3, 28, 28), tmp_path)
    assert any(width % 16 for width in widths(model))
    assert assert_padded(model, 16, (3, 28, 28)) == model


AFTER = "y = Conv(d, w5x12x1x1) " + POOL
CHAINS = {
    "plain": (MAKE + "y = Conv(x, w5x12x3x3, b5) " + POOL, [16, 5]),
    "no bias": ("x = Conv(image, w12x3x3x3) y = Conv(x, w5x12x3x3) " + POOL, [16, 5]),
    "the same weights": (
        MAKE + "b = Conv(image, w12x3x3x3, b12) c = Conv(b, w5x12x1x1) d = Conv(x, w5x12x1x1) "
        "e = Sigmoid(b) f = Conv(e, w5x12x1x1) g = Add(c, d) y = Add(f, g) " + POOL,
        [16, 12, 5, 5, 5],
    ),
    "depthwise": (MAKE + EACH + AFTER, [16, 16, 5]),
    "clip": (
        "a = Conv(image, w12x3x3x3) x = Clip(a, low, high) " + EACH + AFTER,
        [16, 16, 5],
    ),
    "clip of 0": ("a = Conv(image, w12x3x3x3) x = Clip(a, mid) " + EACH + AFTER, [12, 12, 5]),
    "sigmoid": ("a = Conv(image, w12x3x3x3) x = Sigmoid(a) " + EACH + AFTER, [12, 12, 5]),
    "output": (MAKE + EACH + "y = Relu(d) " + POOL, [12, 12]),
    "addition": (MAKE + EACH + "e = Add(d, d) y = Conv(e, w5x12x1x1) " + POOL, [12, 12, 5]),
    "pools": (
        MAKE + "m = MaxPool<kernel_shape=[2, 2], pads=[1, 1, 1, 1]>(x) "
        "d = AveragePool<kernel_shape=[2, 2]>(m) " + AFTER,
        [16, 5],
    ),
    "flatten": (
        MAKE + "p = GlobalAveragePool(x) f = Flatten<axis=1>(p) "
        "logits = Gemm<transB=1>(f, w5x12, b5)",
        [16],
    ),
    "reshape": (
        MAKE + "p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x) f = Reshape(p, rows_108) "
        "r = Relu(f) logits = Gemm<transB=1>(r, w5x108)",
        [12],  # nine pixels a channel: each channel of zeros would cost nine columns
    ),
    "reshape the rest": (
        MAKE + "p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x) f = Reshape(p, rows_rest) "
        "logits = Gemm<transB=1>(f, w5x108)",
        [12],
    ),
    "tiny": ("x = Conv(image, w5x3x3x3) y = Conv(x, w12x5x1x1) " + POOL, [5, 12]),
    "tiny, depthwise": (
        "x = Conv(image, w5x3x3x3) d = Conv<group=5>(x, w5x1x3x3) y = Conv(d, w12x5x1x1) " + POOL,
        [8, 8, 12],
    ),
    "groups": (MAKE + "y = Conv<group=2>(x, w12x6x1x1) " + POOL, [12, 12]),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_width_grows_where_only_convolutions_and_linear_layers_see_it(chain):
    body, expected = CHAINS[chain]
    model = network(body)
    padded = assert_padded(model, 8)
    assert widths(padded) == expected
    assert (padded == model) == (widths(padded) == widths(model))


SINGLE, TWO = MAKE + HALVES, MAKE + MORE + HALVES + HALVES_TOO
JOINS = {
    "one piece of zeros": (TWO + "j = Concat<axis=1>(l, i) " + READ, [16, 12, 5], [3]),
    "twice from one": (SINGLE + "j = Concat<axis=1>(h, l) " + READ, [16, 5], [3]),
    "before a depthwise layer": (
        TWO + "c = Concat<axis=1>(l, i) d = Conv<group=12>(c, w12x1x3x3, b12) j = Relu(d) " + READ,
        [16, 12, 16, 5], [3],
    ),
    "two pieces of two": (
        "x = Conv(image, w14x3x3x3) z = Conv(image, w14x3x3x3_z) "
        "l, h = Split<axis=1>(x, sizes_6_8) m, i = Split<axis=1>(z, sizes_6_8) "
        "j = Concat<axis=1>(l, m) " + READ,
        [16, 16, 5], [4],
    ),
    "none to fill it with": (
        TWO + "s, t = Split<axis=1>(x, sizes_5_7) j = Concat<axis=1>(s, l) "
        "e = Concat<axis=1>(t, m) "
        "f = Conv(j, w5x11x1x1) g = Conv(e, w5x13x1x1) y = Add(f, g) ",
        [12, 12, 5, 5], [2, 2],
    ),
    "whole already": (
        TWO + "j = Concat<axis=1>(l, h, m, i) y = Conv(j, w5x24x1x1) ", [12, 12, 5], [4],
    ),
    "an end that has an order": (
        TWO + "c = Concat<axis=1>(l, i) j = Softmax<axis=1>(c) " + READ, [12, 12, 5], [2],
    ),
    "pieces with other readers": (
        TWO + "j = Concat<axis=1>(l, i) e = Conv(l, w5x6x1x1) f = Conv(x, w5x12x1x1_z) "
        "g = Add(e, f) q = Conv(j, w5x12x1x1) r = Sigmoid(h) s = Conv(r, w5x6x1x1) "
        "u = Add(g, q) y = Add(u, s) ",
        [16, 12, 5, 5, 5, 5], [3],
    ),
    "zeros inside": (
        SINGLE + "b = Conv(image, w10x3x3x3) j = Concat<axis=1>(l, b, h) "
        "y = Conv(j, w5x22x1x1) ",
        [16, 16, 5], [4],
    ),
    "zeros inside, flat": (
        SINGLE + "b = Conv(image, w10x3x3x3) j = Concat<axis=1>(l, b, h) "
        "p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(j) f = Flatten<axis=1>(p) "
        "logits = Gemm<transB=1>(f, w5x198)",
        [12, 10], [3],
    ),
    "whole pieces that fill it": (
        MAKE + MORE + "j = Concat<axis=1>(x, z) y = Conv(j, w5x24x1x1) ", [12, 12, 5], [2],
    ),
    "whole pieces, then a split": (
        MAKE + "b = Conv(image, w10x3x3x3) c = Concat<axis=1>(x, b) "
        "l, h = Split<axis=1>(c, sizes_10_12) e = Conv(l, w5x10x1x1) f = Conv(h, w5x12x1x1) "
        "y = Add(e, f) ",
        [12, 10, 5, 5], [2],
    ),
    "a join that is split": (
        TWO + "c = Concat<axis=1>(l, i) n, o = Split<axis=1>(c, sizes_2_10) "
        "j = Concat<axis=1>(o, n) " + READ,
        [16, 12, 5], [3, 3],
    ),
    "flat pieces": (
        MAKE + "g = GlobalAveragePool(x) f = Flatten<axis=1>(g) s, t = Split<axis=1>(f, sizes_5_7) "
        "j = Concat<axis=1>(t, s) logits = Gemm<transB=1>(j, w5x12)",
        [16], [3],
    ),
    "pixels": (
        MAKE + MORE + "c = Concat<axis=2>(x, z) e = Concat<axis=-1>(c, c) y = Conv(e, w5x12x1x1) ",
        [12, 12, 5], [2, 2],
    ),
    "from the end": (TWO + "j = Concat<axis=-3>(l, i) " + READ, [16, 12, 5], [3]),
}  # fmt: skip


@pytest.mark.parametrize("join", JOINS)
def test_pieces_of_zeros_fill_what_is_joined(join):
    body, expected, parts = JOINS[join]
    model = network(body if "logits" in body else body + POOL)
    padded = assert_padded(model, 8)
    assert widths(padded) == expected
    joined = [node for node in padded.graph.node if node.op_type == "Concat"]
    assert [len(node.input) for node in joined] == parts


def test_a_width_is_a_multiple_of_something():
    with pytest.raises(ValueError, match="positive multiple"):
        pad_widths(onnx.ModelProto(), 0)
