import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from helpers.tiny_networks import NETWORKS, exported, images
from secateur.errors import SecateurError
from secateur.onnx_ir.model import read_model
from secateur.quantization.calibrate import calibrate
from secateur.quantization.parity import compare
from secateur.quantization.qdq import read_scheme, write_qdq
from secateur.quantization.scheme import make_scheme
from secateur.quantization.simulate import Quantizer, Simulated
from secateur.quantization.weights import WeightRule
from secateur.runtimes import OnnxRuntime, session_options


@pytest.fixture(scope="module", params=list(NETWORKS))
def made(request, tmp_path_factory):
    """A float graph, its scheme, both files, and images."""
    folder = tmp_path_factory.mktemp(request.param)
    shape = exported(request.param, folder / "float.onnx")
    model = read_model(folder / "float.onnx")
    ranges = calibrate(folder / "float.onnx", [images(shape, 64, seed=2).numpy()], "minmax")
    scheme = make_scheme(model, ranges)
    write_qdq(model, scheme, folder / "int8.onnx")
    return model, scheme, folder, images(shape, 64, seed=3)


def test_without_a_scheme_it_is_the_float_graph(made):
    model, _, folder, x = made
    theirs = OnnxRuntime(folder / "float.onnx", 1).run(x.numpy())
    with torch.no_grad():
        ours = Simulated(model)(x).numpy()
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_with_a_scheme_it_is_the_quantized_graph_operator_by_operator(made):
    """The QDQ file without any fusion computes every operator in float32, as the simulation."""
    model, scheme, folder, x = made
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(folder / "int8.onnx", options)
    theirs = plain.run(None, {"image": x.numpy()})[0]
    with torch.no_grad():
        ours = Simulated(model, scheme)(x).numpy()
    # One step of a grid, where two float32 sums fall on either side of a half, and what follows.
    assert np.median(np.abs(ours - theirs)) <= 1e-3 * np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= 0.02 * np.abs(theirs).max()


def test_the_file_decides_as_its_simulation(made):
    model, scheme, folder, x = made
    read = read_scheme(model, folder / "int8.onnx")
    for name, layer in scheme.layers.items():
        assert (read.layers[name].integers == layer.integers).all()
        assert (read.layers[name].weight == layer.weight).all()
        assert (read.layers[name].real_bias == layer.real_bias).all()
    for name, affine in scheme.activations.items():
        assert read.activations[name].delta == affine.delta
        assert read.activations[name].zero_point == affine.zero_point
    parity = compare(OnnxRuntime(folder / "int8.onnx", 1), Simulated(model, read), [x.numpy()])
    assert parity.n == 64
    assert parity.agreement >= 0.95
    assert all(d.file_margin < parity.typical_margin / 4 for d in parity.differences)


def test_a_file_of_another_graph_is_refused(made, tmp_path):
    model, _, folder, _ = made
    with pytest.raises(SecateurError, match="not a quantization of the float graph"):
        read_scheme(model, folder / "float.onnx")


def test_differences_are_named_with_their_margins():
    class Fixed:
        def run(self, images):
            return np.array([[1.0, 0.0], [0.5, 0.25]], np.float32)

    def simulated(images):
        return torch.tensor([[2.0, 0.0], [0.0, 0.125]])

    parity = compare(Fixed(), simulated, [np.zeros((2, 1, 1, 1), np.float32)])
    (found,) = parity.differences
    assert (found.image, found.file, found.simulated) == (1, 0, 1)
    assert (found.file_margin, found.simulated_margin) == (0.25, 0.125)
    assert parity.agreement == 0.5
    with pytest.raises(ValueError, match="at least one"):
        compare(Fixed(), simulated, [])


def test_rounding_is_that_of_the_arithmetic_to_the_last_bit(made):
    _, scheme, _, _ = made
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 3
    for affine in list(scheme.activations.values())[:3]:
        x[:510] = (np.arange(510) / 2 - 60).astype(np.float32) * affine.delta  # halves
        ours = Quantizer(affine)(torch.from_numpy(x)).numpy()
        assert (ours == affine.dequantize(affine.quantize(x))).all()


def test_few_bits_and_one_scale_are_stored_and_read_back(made, tmp_path):
    model, _, folder, x = made
    ranges = calibrate(folder / "float.onnx", [x.numpy()], "minmax")
    scheme = make_scheme(model, ranges, {"": WeightRule(4, per_channel=False)})
    assert all(np.abs(layer.integers).max() <= 7 for layer in scheme.layers.values())
    write_qdq(model, scheme, tmp_path / "few.onnx")
    read = read_scheme(model, tmp_path / "few.onnx")
    runtime = OnnxRuntime(tmp_path / "few.onnx", 1)
    assert compare(runtime, Simulated(model, read), [x.numpy()]).agreement >= 0.95


def test_an_unknown_operator_is_named(tmp_path):
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Sinh", ["image"], ["logits"], name="strange")],
        "g",
        [helper.make_tensor_value_info("image", 1, ["n", 3])],
        [helper.make_tensor_value_info("logits", 1, ["n", 3])],
    )
    with pytest.raises(SecateurError, match=r"node strange.*Sinh"):
        Simulated(helper.make_model(graph))
