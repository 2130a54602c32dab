from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from helpers import tiny_networks
from secateur.data import Images, Preparation
from secateur.pruning.find import find_prunable
from secateur.pruning.masks import weight_masks
from secateur.sensitivity import fast_engine as fast
from secateur.sensitivity import scan as sensitivity
from secateur.sensitivity import tape
from secateur.sensitivity.engine import EagerEngine, Level
from secateur.sensitivity.fast_engine import FastEngine
from secateur.sensitivity.layout import Layout, tensor_name
from secateur.sensitivity.scan_graph import write_graph
from secateur.sensitivity.tape import Unsupported, record


def prepared(network, shape, count=20):
    """Images that the network is right about, and how to prepare them."""
    pixels = (tiny_networks.images(shape, count) * 60 + 128).clamp(0, 255).byte()
    prepare = Preparation((0.5,) * shape[0], (0.25,) * shape[0], shape[1])
    with torch.no_grad():
        labels = network(prepare(pixels)).argmax(1)
    return Images(pixels, labels, tuple("abcdefghij")), prepare


def levels_of(network, prunable, fractions=(0.3, 0.8)):
    """Every group alone at each fraction, every linear layer's weights, and all at once."""
    linear = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    found = sensitivity._Candidates(network, prunable, [])
    one = [found.level(name, fraction) for name in found.names for fraction in fractions]
    kept = weight_masks(network, linear, 0.5).tensors
    weights = [Level(name, 0.5, (), {name: kept[f"{name}.weight"]}) for name in linear]
    both = Level("both", 0.3, one[0].groups, weights[-1].weights)
    return [Level("network", 0.0), *one, *weights, found.level("network", 0.2), both]


def assert_agree(network, shape, count=20):
    """Assert that both engines say the same of every image at every level; return the answers."""
    images, prepare = prepared(network, shape, count)
    levels = levels_of(network, find_prunable(network, torch.zeros(1, *shape)))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    done: list[int] = []
    engine = FastEngine(network, (16, *shape), threads=1)
    ours = engine.correct(levels, images, prepare, done.append)
    assert np.array_equal(ours, EagerEngine(network).correct(levels, images, prepare))
    assert sum(done) == len(levels)
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
    return ours


@pytest.mark.parametrize("name", tiny_networks.NETWORKS)
def test_the_fast_engine_says_of_every_image_what_the_network_says(name):
    make, shape = tiny_networks.NETWORKS[name]
    right = assert_agree(make(), shape)  # 20 images in batches of 16: the last is not full
    assert right[0].all()
    assert not right[1:].all(1).all()  # pruning shows


class Assorted(nn.Module):
    """A residual join, a gate, a shared and a grouped layer, pools and odd strides."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.left = nn.Conv2d(6, 8, (3, 1), stride=(1, 2), padding=(1, 0), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.right = nn.Conv2d(6, 8, 1, stride=(1, 2))
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.shared = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.head = nn.Linear(12, 10, bias=False)

    def forward(self, images):
        x = torch.max_pool2d(torch.relu(self.stem(images)), 3, 2, 1)
        x = self.norm(self.left(x)) + self.right(x)
        gate = torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = x * nn.functional.hardsigmoid(self.excite(gate))
        x = nn.functional.silu(self.shared(self.shared(x)))
        x = nn.functional.avg_pool2d(x, 2).transpose(2, 3)
        x = torch.cat(torch.chunk(self.grouped(x), 2, 1)[::-1], 1) * 0.5
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_operations_beyond_those_of_the_three_networks():
    shape = (2, 21, 27)
    network = tiny_networks.settled(Assorted(), shape)
    images = tiny_networks.images(shape, 5)
    calls = record(network, (16, *shape))
    layout = Layout(calls)
    weights = {k: v.detach().numpy() for k, v in network.state_dict().items()}
    graph = write_graph(layout, weights, calls.calls, [calls.logits])
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (found,) = session.run(None, {tensor_name(calls.image): layout.store(images.numpy())})
    with torch.no_grad():
        expected = network(images)
    np.testing.assert_allclose(found[0, :, 0, :5].T, expected.numpy(), atol=1e-5)


def test_weights_that_share_a_tensor_are_masked_everywhere():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.twice = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
            self.head = nn.Linear(8, 10)

        def forward(self, images):
            return self.head(self.twice(self.twice(self.stem(images)).relu()).mean((2, 3)))

    assert_agree(tiny_networks.settled(Twice(), (3, 8, 8)), (3, 8, 8))


def test_masks_that_are_not_applied_are_noticed(monkeypatch):
    network, shape = tiny_networks.shufflenet(), (3, 28, 28)
    images, prepare = prepared(network, shape)
    levels = levels_of(network, find_prunable(network, torch.zeros(1, *shape)))
    engine = FastEngine(network, (16, *shape), threads=1)
    plain = engine._masks
    monkeypatch.setattr(
        engine, "_masks", lambda level: {k: np.ones_like(v) for k, v in plain(level).items()}
    )
    with pytest.raises(Unsupported, match="other logits than the network's at conv1"):
        engine.correct(levels, images, prepare)


def test_a_scan_uses_the_fast_engine_where_it_can_and_says_where_not(monkeypatch, capsys):
    network, shape = tiny_networks.mobilenet(), (3, 28, 28)
    images, prepare = prepared(network, shape)
    prunable = find_prunable(network, torch.zeros(1, *shape))

    def scan():
        return sensitivity.scan_layers(network, prunable, [], [0.5], images, prepare)

    with monkeypatch.context() as patch:
        patch.setattr(sensitivity, "EagerEngine", None)
        ours = scan()
    assert not capsys.readouterr().err
    monkeypatch.setattr(fast, "record", lambda *_: tape.record(nn.Bilinear(3, 3, 3), (1, 3)))
    assert scan() == ours
    assert "runs the whole network for each point, because" in capsys.readouterr().err


class Odd(nn.Module):
    """What it does is given."""

    def __init__(self, does):
        super().__init__()
        self.layer, self.does = nn.Conv2d(3, 10, 1), does

    def forward(self, images):
        return self.does(self.layer(images))


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (
            lambda x: x.mean((2, 3)) + torch.ones(10, device=x.device),
            "a tensor that it made itself",
        ),
        (lambda x: x.mean((0, 2, 3)).expand(16, 10), "apart|a mean over images"),
        (lambda x: x.mean((2, 3)).cumsum(1), "no counterpart of aten::cumsum"),
        (lambda x: x, "not .images, classes."),
        (lambda x: (x.mean((2, 3)), x), "a tuple"),
        (lambda x: x.mean((2, 3)) * float(x.sum()), "."),
    ],
)
def test_what_has_no_counterpart_is_refused(does, why):
    images = Images(torch.zeros(16, 3, 4, 4, dtype=torch.uint8), torch.zeros(16).long(), ())
    prepare = Preparation((0.5,) * 3, (0.5,) * 3, 4)

    def evaluate():
        engine = FastEngine(Odd(does), (16, 3, 4, 4), threads=1)
        return engine.correct([Level("network", 0.0)], images, prepare)

    with pytest.raises(Unsupported, match=why):
        evaluate()


def test_a_tensor_that_changes_under_a_view_is_refused():
    def does(x):
        pixels = x.mean((2, 3))
        half = pixels[:, :5]
        half.relu_()
        return pixels

    with pytest.raises(Unsupported, match="through a view"):
        record(Odd(does), (16, 3, 4, 4))
