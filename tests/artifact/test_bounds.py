"""What a network from a file must not be."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers.artifacts import quantized
from helpers.tiny_networks import NETWORKS
from secateur.artifact.bounds import check_network
from secateur.errors import ArtifactError


def model(nodes, constants=(), shape=("batch", 3, 8, 8), opsets=None, **fields):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(value, name) for name, value in dict(constants).items()],
    )
    opsets = opsets or [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **fields)


FLAT = helper.make_node("Flatten", ["image"], ["logits"], name="flat")


def conv(**attributes):
    return helper.make_node("Conv", ["image", "w"], ["c"], name="conv", **attributes)


W = {"w": np.zeros((4, 3, 3, 3), np.float32)}
AFTER = helper.make_node("Flatten", ["c"], ["logits"], name="flat")


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_our_own_networks_are_within(name):
    model, fit = check_network(quantized(name))
    assert model == onnx.load_from_string(quantized(name))
    assert fit > 64


def test_a_plain_network_is_within():
    check_network(model([FLAT]).SerializeToString())
    check_network(model([conv(pads=[1, 1, 1, 1]), AFTER], W).SerializeToString())


def test_as_many_images_fit_as_the_largest_tensor_allows():
    """The largest is the convolution's output, 4x6x6 for an image of 3x8x8; the image has 192."""
    made = model([conv(), AFTER], W).SerializeToString()
    assert check_network(made, 1000)[1] == 1000 // 192
    with pytest.raises(ArtifactError, match="a tensor of 192 elements"):
        check_network(made, 191)


def test_a_depthwise_layer_does_the_work_of_its_own_channel():
    """128 channels of 800x800 by 3x3: 0.7 billion multiplications, and not 128 times as many."""
    depthwise = helper.make_node("Conv", ["image", "w"], ["c"], name="conv", group=128)
    weight = {"w": np.zeros((128, 1, 3, 3), np.float32)}
    check_network(model([depthwise, AFTER], weight, ("batch", 128, 800, 800)).SerializeToString())


def loop():
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    return model(
        [helper.make_node("Loop", ["", "yes"], [], body=body), FLAT], {"yes": np.array(True)}
    )


def external():
    made = model([FLAT], W)
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    made.graph.initializer[0].ClearField("raw_data")
    made.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    return made


def subgraph_in_a_known_operator():
    made = model([FLAT])
    made.graph.node[0].attribute.append(helper.make_attribute("hidden", loop().graph))
    return made


def tile(count):
    repeats = helper.make_node("Tile", ["image", "n"], ["c"], name="tile")
    return model([repeats, AFTER], {"n": ints(1, 1, count, count)})


def resize(factor):
    bigger = helper.make_node("Resize", ["image", "", "s"], ["c"], name="resize", mode="nearest")
    return model([bigger, AFTER], {"s": np.array([1, 1, factor, factor], np.float32)})


def squares(count):
    """A chain of products of large matrices: little memory, much work."""
    nodes = [helper.make_node("Resize", ["image", "", "s"], ["m0"], mode="nearest")]
    nodes += [
        helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"], name=f"m{i}")
        for i in range(count)
    ]
    nodes.append(helper.make_node("Flatten", [f"m{count}"], ["logits"]))
    return model(nodes, {"s": np.array([1, 1, 512, 512], np.float32)})


FUNCTION = helper.make_function(
    "ours",
    "f",
    ["a"],
    ["b"],
    [helper.make_node("Relu", ["a"], ["b"])],
    [helper.make_opsetid("", 18)],
)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (loop(), "operator Loop"),
        (external(), "tensors in other files"),
        (subgraph_in_a_known_operator(), "attribute hidden"),
        (tile(4), "operator Tile"),
        (resize(1e5), "elements"),
        (resize(2000), "elements"),
        (squares(100), "multiplications"),
        (model([conv(pads=[2**30] * 4), AFTER], W), "elements|not a valid network"),
        (model([conv(pads=[3000] * 4), AFTER], W), "elements"),
        (model([helper.make_node("ours", ["image"], ["logits"], domain="f")]), "operator fours"),
        (
            model([FLAT], opsets=[helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]),
            "other domains",
        ),
        (model([FLAT], opsets=[helper.make_opsetid("", 99)]), "newer ONNX"),
        (model([FLAT], functions=[FUNCTION]), "functions"),
        (model([FLAT], shape=("batch", 3, "h", "w")), "unknown or empty shape"),
        (model([FLAT], shape=("batch", 3)), "other than"),
        (model([FLAT] * 20_000), "nodes"),
        (model([FLAT], {"t": np.array(["text"], object)}), "text"),
    ],
)  # fmt: skip
def test_what_is_beyond_is_named(made, said):
    with pytest.raises(ArtifactError, match=said):
        check_network(made.SerializeToString())


def test_a_large_kernel_on_a_large_border_is_work():
    pool = helper.make_node(
        "AveragePool", ["image"], ["c"], name="pool",
        kernel_shape=[30000, 30000], pads=[15000] * 4, count_include_pad=1,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match=r"multiplications|not a valid network"):
        check_network(model([pool, AFTER]).SerializeToString())


@pytest.mark.parametrize(
    "broken",
    [
        model([helper.make_node("Flatten", ["nowhere"], ["logits"])]),
        model([helper.make_node("Conv", ["image"], ["logits"])]),
        model([helper.make_node("Reshape", ["image", "s"], ["logits"])], {"s": ints(7, -1)}),
    ],
)
def test_what_is_no_network_is_one_error(broken):
    with pytest.raises(ArtifactError):
        check_network(broken.SerializeToString())


def test_shapes_that_the_file_claims_are_not_believed():
    made = resize(2000)
    made.graph.value_info.append(
        helper.make_tensor_value_info("c", TensorProto.FLOAT, ["batch", 3, 8, 8])
    )
    with pytest.raises(ArtifactError, match="elements"):
        check_network(made.SerializeToString())


@pytest.mark.parametrize("data", [b"\xff\xff", b"text"])
def test_what_is_no_onnx_file_is_one_error(data):
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        check_network(data)
