import itertools

import numpy as np
import onnx
import pytest
import torch

from helpers.tiny_networks import NETWORKS, exported, images
from secateur.errors import RecipeError
from secateur.onnx_ir.model import Graph, read_model
from secateur.quantization.affine import INT8_SYMMETRIC, Grid
from secateur.quantization.calibrate import calibrate
from secateur.quantization.hessian import hessian_of
from secateur.quantization.pricing import PRICES, highest_price, scheme_by_price
from secateur.quantization.rate import _Cheapest, _Model, priced_layers, round_by_rate
from secateur.quantization.scheme import make_scheme
from secateur.quantization.weights import WeightRule, is_saturation_free
from secateur.recipe import load_recipe

GEMM = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)


def entropy(integers):
    counts = np.unique(integers, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    weight = random.laplace(0, 0.1, (32, 64)).astype(np.float32)
    x = torch.tensor(random.standard_normal((400, 64)).astype(np.float32))
    return weight, x, hessian_of(GEMM, weight.shape, x), np.full(32, 0.5, np.float32)


def cost(weight, rounded, x, curvature):
    """Nats that the errors are foretold to cost."""
    moved = x.numpy() @ (rounded - weight).T
    return float(np.square(moved).mean(0) @ curvature / 2)


def test_a_higher_price_spends_fewer_bits_and_more_loss(problem):
    weight, x, hessian, curvature = problem
    bits, losses = [], []
    for price in (1e-6, 1e-5, 1e-4, 1e-3):
        affine, integers = round_by_rate(weight, INT8_SYMMETRIC, hessian, curvature, price)
        bits.append(entropy(integers))
        losses.append(cost(weight, affine.dequantize(integers), x, curvature))
    assert bits == sorted(bits, reverse=True)
    assert losses == sorted(losses)
    assert bits[-1] < 0.3 * bits[0]


def test_the_price_is_what_a_bit_costs(problem):
    """Along the curve of bits and loss the slope is the price, whatever the price."""
    weight, x, hessian, curvature = problem
    for price in (1e-5, 1e-4):
        points = []
        for near in (price * 0.8, price * 1.25):
            affine, integers = round_by_rate(weight, INT8_SYMMETRIC, hessian, curvature, near)
            points.append(
                (entropy(integers), cost(weight, affine.dequantize(integers), x, curvature))
            )
        (more, little), (fewer, much) = points
        assert (much - little) / (more - fewer) == pytest.approx(price, rel=0.6)


def test_it_beats_nearest_at_the_same_bits(problem):
    weight, x, hessian, curvature = problem
    affine, integers = round_by_rate(weight, INT8_SYMMETRIC, hessian, curvature, 1e-4)
    ours, loss = entropy(integers), cost(weight, affine.dequantize(integers), x, curvature)
    steps = np.geomspace(0.02, 1, 200)
    nearest = [np.rint(weight / step) for step in steps]
    close = min(range(len(steps)), key=lambda i: abs(entropy(nearest[i]) - ours))
    theirs = cost(weight, nearest[close] * steps[close], x, curvature)
    assert loss < 0.97 * theirs


def test_the_cheapest_of_the_integers_near_by_is_chosen():
    random = torch.Generator().manual_seed(0)
    steps = 6 * torch.randn(1, 8, 400, generator=random)
    model = _Model.of(steps.round())
    worth = torch.logspace(-3, 1, 8)[None]
    chooser, weight = _Cheapest(worth, model, 64), torch.ones(1, 1)
    for column in steps.unbind(2):
        near = column.round()
        tried = torch.stack([near, near - near.sign(), torch.zeros_like(near)])
        bits = model.other + (tried.abs() - 1) * model.step
        costs = worth * (column - tried).square() + torch.where(tried == 0, model.zero, bits)
        found = chooser(column, weight)
        chosen = (tried == found).float().argmax(0, keepdim=True)
        assert torch.equal(costs.gather(0, chosen)[0], costs.min(0).values)


def test_rows_that_matter_get_finer_steps(problem):
    weight, _, hessian, curvature = problem
    curvature = curvature * np.where(np.arange(32) < 16, 1, 100).astype(np.float32)
    affine, _ = round_by_rate(weight, INT8_SYMMETRIC, hessian, curvature, 1e-4)
    assert np.median(affine.delta[:16]) / np.median(affine.delta[16:]) == pytest.approx(10, rel=0.1)


def test_rows_without_weights_or_without_meaning(problem):
    weight, _, hessian, curvature = problem
    weight[3], curvature[5] = 0, 0
    affine, integers = round_by_rate(weight, Grid(8, True, True, 64), hessian, curvature, 1e-4)
    assert not integers[[3, 5]].any()
    assert np.isfinite(affine.delta).all()
    assert (affine.delta > 0).all()
    assert np.abs(integers).max() <= 64


@pytest.fixture(scope="module", params=list(NETWORKS))
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "f.onnx"
    shape = exported(request.param, path)
    x = images(shape, 64, seed=2)
    model = read_model(path)
    nearest = make_scheme(model, calibrate(path, [x.numpy()], "minmax"))
    return model, nearest, scheme_by_price(model, nearest, {"": WeightRule()}, x, True)


def test_a_whole_network_by_price(made):
    model, nearest, scheme_at = made
    scheme, priced = scheme_at(30), set(priced_layers(Graph(model)))
    bits = {True: 0.0, False: 0.0}
    for name, layer in scheme.layers.items():
        before = nearest.layers[name].integers
        assert is_saturation_free(layer.integers)
        assert (layer.integers == before).all() or name in priced
        bits[name in priced] += entropy(layer.integers) / entropy(before)
    assert bits[True] / len(priced) < 0.7


class Foretold:
    """Validation on which a scheme is as bad as its price."""

    def __init__(self, breaks_at):
        self.breaks_at = breaks_at

    def right(self, network):
        lost = 90 if network.price > self.breaks_at else 0
        return np.arange(10_000) >= lost


@pytest.mark.parametrize("breaks_at", [0.0, PRICES[0], 0.07, 9.0])
def test_the_highest_price_within_the_tolerance_is_found(breaks_at):
    class Network:
        def __init__(self, scheme):
            self.price = scheme or 0.0

    scheme, about = highest_price(
        Network, "nearest", lambda price: price, Foretold(breaks_at), 0.01
    )
    within = [price for price in PRICES if price <= breaks_at]
    assert scheme == (within[-1] if within else "nearest")
    assert about["price"] == (within[-1] if within else 0)
    assert len(about["drops"]) <= 5


@pytest.mark.parametrize("other", ["bits=4", "per_channel=false"])
def test_a_price_alone_decides(recipe_file, other):
    with pytest.raises(RecipeError, match="price"):
        load_recipe(str(recipe_file), ["quantize.price=0.1", f"quantize.{other}"])


def test_prices_rise():
    assert all(low < high for low, high in itertools.pairwise(PRICES))
