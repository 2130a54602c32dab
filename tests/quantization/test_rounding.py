import numpy as np
import pytest
import torch
from torch import nn

from helpers.tiny_networks import NETWORKS, exported, images
from secateur.errors import DataError
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import Graph, read_model
from secateur.quantization.calibrate import calibrate
from secateur.quantization.rounding import recover
from secateur.quantization.scheme import make_scheme
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import WeightRule, is_saturation_free


@pytest.fixture(scope="module", params=list(NETWORKS))
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "float.onnx"
    shape = exported(request.param, path)
    x = images(shape, 64, seed=2)
    return read_model(path), calibrate(path, [x.numpy()], "minmax"), x, images(shape, 64, seed=3)


def error(model, scheme, x):
    """What rounding does to the logits of unseen images, relative to what the images do."""
    with torch.no_grad():
        real = Simulated(model)(x)
        return float((Simulated(model, scheme)(x) - real).norm() / (real - real.mean(0)).norm())


def test_adaptive_rounding_beats_nearest_at_four_bits(made):
    model, ranges, x, unseen = made
    rules = {"": WeightRule(4)}
    nearest = make_scheme(model, ranges, rules)
    adaptive = recover(model, nearest, x, rules, adaptive=True, correct_bias=False)
    assert error(model, adaptive, unseen) < 0.8 * error(model, nearest, unseen)
    for layer in adaptive.layers.values():
        assert np.abs(layer.integers).max() <= 7


def test_bias_correction_takes_the_mean_error_out_of_every_channel(made):
    model, ranges, x, _ = made
    plain = make_scheme(model, ranges, {"": WeightRule(4)})
    corrected = recover(model, plain, x, {"": WeightRule(4)})
    graph, network, off = Graph(model), Simulated(model, corrected), []
    values = network.start(x)
    for node in network.walk(values):
        if node.name not in corrected.layers:
            continue
        layer, before = corrected.layers[node.name], plain.layers[node.name]
        assert (layer.integers == before.integers).all()
        weight = torch.tensor(graph.constant(node.input[1]))
        real = network.layer_output(node, values[node.input[0]], weight)
        ours = network.layer_output(node, values[node.input[0]], torch.tensor(layer.weight))
        others = [axis for axis in range(real.ndim) if axis != 1]
        error = (ours - real).mean(others) - torch.tensor(before.real_bias - layer.real_bias)
        # What is left is the rounding of two biases to int32.
        assert (error.abs() <= torch.tensor(layer.bias_scale) * 1.01).all()
        off.append(float((ours - real).mean(others).abs().max() / layer.bias_scale.max()))
    assert max(off) > 10


def test_rows_stay_free_of_saturation(made):
    model, ranges, x, _ = made
    scheme = recover(model, make_scheme(model, ranges), x, adaptive=True)
    assert all(is_saturation_free(layer.integers) for layer in scheme.layers.values())


def test_pruned_weights_stay_pruned(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        network[1].weight[torch.rand(16, 48) < 0.5] = 0
    export_onnx(network, (3, 4, 4), tmp_path / "f.onnx", {})
    model, x = read_model(tmp_path / "f.onnx"), torch.randn(64, 3, 4, 4)
    rules = {"": WeightRule(4)}
    plain = make_scheme(model, calibrate(tmp_path / "f.onnx", [x.numpy()], "minmax"), rules)
    adaptive = recover(model, plain, x, rules, adaptive=True)
    layer = next(iter(adaptive.layers.values()))
    assert (layer.integers[network[1].weight.numpy(force=True) == 0] == 0).all()
    assert (layer.integers != next(iter(plain.layers.values())).integers).any()


def test_no_images_is_one_line(made):
    model, ranges, x, _ = made
    with pytest.raises(DataError, match="no images"):
        recover(model, make_scheme(model, ranges), x[:0])
