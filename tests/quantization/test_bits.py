import numpy as np
import pytest
import torch

from helpers.tiny_networks import exported
from secateur.data import Images, Preparation
from secateur.onnx_ir.model import Graph, read_model
from secateur.quantization.bits import (
    BitPoint,
    _rounded,
    choose_bits,
    narrowing,
    scan_bits,
    total_bits,
)
from secateur.quantization.scheme import weighted_nodes
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import WeightRule
from secateur.statistics import Interval
from secateur.training.evaluation import correct_and_loss

PREPARE = Preparation((0.5,) * 3, (0.25,) * 3, 28)


def point(layer, bits, weights, loss):
    nothing = Interval(0.0, 0.0, 0.0)
    return BitPoint(layer, bits, weights, 0, 1, nothing, nothing, loss)


POINTS = [
    point("network", 32, 110, 0.0),
    # a: 10 weights; two bits fewer cost 0.005, less than b's, but 0.00025 for each bit saved.
    point("a", 8, 10, 0.0), point("a", 6, 10, 0.005), point("a", 4, 10, 0.42),
    # b: 100 weights; two bits fewer cost 0.0001 a bit saved, four together 0.000025.
    point("b", 8, 100, 0.0), point("b", 6, 100, 0.02), point("b", 4, 100, 0.01),
]  # fmt: skip


def test_each_step_loses_least_for_what_it_saves():
    assert narrowing(POINTS) == [
        {"a": 8, "b": 8},
        {"a": 8, "b": 4},  # not by way of 6, which loses more
        {"a": 6, "b": 4},
        {"a": 4, "b": 4},
    ]


def test_by_size():
    assert total_bits({"a": 8, "b": 4}, POINTS) == 480
    assert choose_bits(POINTS, size=480 / 880) == {"a": 8, "b": 4}
    assert choose_bits(POINTS, size=479 / 880) == {"a": 6, "b": 4}
    assert choose_bits(POINTS, size=1.0) == {"a": 8, "b": 8}
    with pytest.raises(ValueError, match="larger"):
        choose_bits(POINTS, size=0.4)


def test_by_what_is_acceptable():
    assert choose_bits(POINTS, acceptable=lambda bits: bits["a"] >= 6) == {"a": 6, "b": 4}
    assert choose_bits(POINTS, acceptable=lambda bits: False) == {"a": 8, "b": 8}
    assert choose_bits(POINTS, acceptable=lambda bits: True) == {"a": 4, "b": 4}
    with pytest.raises(ValueError, match="not both"):
        choose_bits(POINTS)


def test_a_point_is_the_network_with_that_weight_rounded(tmp_path):
    shape = exported("shufflenet", tmp_path / "f.onnx")
    model = read_model(tmp_path / "f.onnx")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (300, *shape), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.arange(300) % 10, tuple("abcdefghij"))
    ticks = []
    points = scan_bits(model, images, PREPARE, (2, 8), advance=lambda: ticks.append(1))
    layers = weighted_nodes(Graph(model))
    assert [(p.layer, p.bits) for p in points] == [
        ("network", 32),
        *((node.name, bits) for node in layers for bits in (2, 8)),
    ]
    assert len(ticks) == 2 * len(layers)
    network = Simulated(model)
    right, loss = correct_and_loss(network, images, PREPARE)
    for node in (layers[0], layers[5], layers[-1]):
        kept = network.weights[node.name].data
        network.weights[node.name].data = _rounded(network.graph, node, 2, WeightRule())
        ours, ours_loss = correct_and_loss(network, images, PREPARE)
        network.weights[node.name].data = kept
        (found,) = (p for p in points if (p.layer, p.bits) == (node.name, 2))
        assert found.correct == ours.sum()
        assert found.loss == pytest.approx(ours_loss.mean() - loss.mean(), abs=1e-6)
        assert found.drop.value == pytest.approx(right.mean() - ours.mean())
        assert found.weights == np.prod(kept.shape)
    assert max(abs(p.loss) for p in points if p.bits == 8) < max(
        p.loss for p in points if p.bits == 2
    )
    assert [BitPoint.from_dict(p.to_dict()) for p in points] == points
