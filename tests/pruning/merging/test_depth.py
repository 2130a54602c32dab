"""Depth for a time limit, chosen by a made-up clock, and what follows: export, int8, pruning."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import MobileNetV2

import secateur
from helpers.odd_networks import assert_same, batch, lively
from helpers.tiny_networks import images as smooth
from helpers.tiny_networks import settled
from secateur.data import Images
from secateur.errors import DataError, NetworkError
from secateur.pruning.geometry import list_calls
from secateur.pruning.merging import depth as merging_depth
from secateur.pruning.merging.chains import chains_of
from secateur.pruning.merging.depth import MergedDepth, choose_depth
from secateur.pruning.merging.latency_table import LatencyTable
from secateur.pruning.merging.linear_segment import LinearSegment
from secateur.pruning.merging.links import Segment
from secateur.pruning.merging.loss_table import measure_losses
from secateur.pruning.merging.rewrite import linearize, segment_as_it_is
from secateur.pruning.merging.segment_fit import Fit
from secateur.pruning.merging.traced import trace_modules

SHAPE = (3, 16, 16)
SETTINGS = [[1, 8, 1, 1], [2, 8, 1, 1], [2, 12, 1, 2]]


def tiny():
    """Two stages of inverted residual blocks."""
    network = MobileNetV2(num_classes=4, inverted_residual_setting=SETTINGS, width_mult=1.0)
    network.features[0][0] = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    network.features[-1] = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU6())
    network.classifier = nn.Linear(24, 4)
    return settled(network, SHAPE)


def clock(layer) -> float:
    """A machine on which a call takes 1 ms and a million products another."""
    return 1 + layer.weights * math.prod(layer.result) / 1e6


class Clock:
    reference = 1.0

    def __call__(self, layer):
        return clock(layer)


class Machine:
    """Times networks by their layers; ``extra`` is a part that merging cannot save."""

    def __init__(self, extra=0.5):
        self.extra, self.loaded = extra, 0

    def load(self, network):
        self.loaded += 1
        example = torch.empty(1, *SHAPE, device="meta")
        return self.extra + sum(clock(call.layer) for call in list_calls(network, example))

    def time(self, *networks):
        return list(networks)


def pictures():
    """Images that the network classifies correctly, so that each change costs."""
    images = smooth(SHAPE, 24)
    with torch.no_grad():
        return Images(images, tiny()(images).argmax(1), ())


PICTURES = pictures()
FIT = Fit(PICTURES, lambda pixels: pixels, 4)
NO_FIT = Fit(PICTURES, lambda pixels: pixels, 0)


def reach(network, target, machine=None, fit=NO_FIT):
    choice = choose_depth(
        network, PICTURES.pixels[:1], fit, PICTURES, lambda pixels: pixels, target, Clock(),
        machine or Machine(),
    )  # fmt: skip
    linearized = fit.linearize(choice.traced, choice.segments)
    merged = secateur.merge_segments(linearized)
    return MergedDepth(**vars(choice), linearized=linearized, merged=merged)


@pytest.mark.parametrize("target", [0.9, 0.7, 0.5])
def test_a_network_gets_within_the_target(target):
    result = reach(tiny(), target)
    assert result.ratio <= target * 1.05
    assert result.segments
    with torch.no_grad():
        expected, actual = result.linearized(PICTURES.pixels), result.merged(PICTURES.pixels)
    assert torch.allclose(expected, actual, atol=1e-4 * float(expected.abs().max()))
    convolutions = sum(isinstance(m, nn.Conv2d) for m in result.merged.modules())
    assert convolutions < sum(isinstance(m, nn.Conv2d) for m in tiny().modules())
    assert not any(isinstance(m, LinearSegment) for m in result.merged.modules())


def test_a_target_that_merging_cannot_reach_is_an_error():
    with pytest.raises(NetworkError, match=r"cannot be reached by merging .*found 0"):
        reach(tiny(), 0.05)


def test_an_own_time_of_the_network_is_made_up_for():
    """The tables promise more than the network keeps; the next choice saves more."""
    machine = Machine(extra=10)
    result = reach(tiny(), 0.7, machine)
    assert result.ratio <= 0.7
    assert machine.loaded > 2


def test_losses_are_those_of_networks_with_one_segment_changed():
    traced = trace_modules(tiny(), PICTURES.pixels[:1])
    (chain,) = chains_of(traced)
    segments = [s for s in chain.segments(7) if s.start < 4]
    losses = measure_losses(traced, segments, NO_FIT, PICTURES, lambda p: p, 7)
    with torch.no_grad():
        before = F.cross_entropy(traced(PICTURES.pixels), PICTURES.labels)
        for segment in segments:
            network = linearize(traced, [segment])
            after = F.cross_entropy(network(PICTURES.pixels), PICTURES.labels)
            assert losses[segment] == pytest.approx(max(0, float(after - before)), abs=1e-6)
    assert max(losses.values()) > 0.1
    assert {losses[s] for s in segments if s.kind == "keep"} == {0}


def test_latencies_of_segments_add_up_to_the_network():
    traced = trace_modules(tiny(), PICTURES.pixels[:1])
    full = Machine().load(traced)
    table = LatencyTable(traced, PICTURES.pixels[:1], clock, full)
    (chain,) = chains_of(traced)
    every = list(chain.segments(7))
    kept = [s for s in every if s.kind == "keep"]
    assert table.outside(every) + sum(table[s] for s in kept) == pytest.approx(full)
    for segment in every:
        if segment.kind == "merge":
            conv = linearize(traced, [segment])
            merged = secateur.merge_segments(conv)
            example = torch.empty(1, *SHAPE, device="meta")
            layers = {c.weight: c.layer for c in list_calls(merged, example)}
            assert layers[f"{segment.name}.weight"] == table.layer(segment)
    removed = [s for s in every if s.kind == "remove"]
    assert removed
    assert all(table[s] == 0 for s in removed)


class Projecting(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.project, self.head = nn.Conv2d(3, 8, 1, 2), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x))) + self.project(x)))


def test_a_projection_takes_time_until_it_is_merged():
    traced = trace_modules(Projecting().eval(), PICTURES.pixels[:1])
    layers = {
        call.weight.removesuffix(".weight"): clock(call.layer)
        for call in list_calls(traced, torch.empty(1, *SHAPE, device="meta"))
    }
    table = LatencyTable(traced, PICTURES.pixels[:1], clock, sum(layers.values()))
    (chain,) = chains_of(traced)
    of = {(s.start, s.end, s.kind): s for s in chain.segments(99)}
    assert table[of[0, 1, "keep"]] == layers["first"]
    assert table[of[1, 2, "keep"]] == layers["second"] + layers["project"]
    assert table[of[0, 2, "merge"]] == clock(table.layer(of[0, 2, "merge"]))
    assert table[of[0, 2, "remove"]] == layers["project"]
    assert table.outside(of.values()) == pytest.approx(0)


def test_layers_are_scaled_to_a_network_that_is_faster_than_their_sum():
    traced = trace_modules(tiny(), PICTURES.pixels[:1])
    (chain,) = chains_of(traced)
    every = list(chain.segments(7))
    half = Machine(0).load(traced) / 2
    table = LatencyTable(traced, PICTURES.pixels[:1], clock, half)
    assert table[every[0]] == pytest.approx(clock(table.layer(every[0])) / 2)
    assert 0 < table.outside(every) < half


def test_segments_that_are_not_faster_are_not_measured():
    traced = trace_modules(tiny(), PICTURES.pixels[:1])
    table = LatencyTable(traced, PICTURES.pixels[:1], lambda layer: layer.weights / 1e3, 10.0)
    (chain,) = chains_of(traced)
    every = list(chain.segments(7))
    faster = table.faster(every)
    assert 0 < len(faster) < len(every)
    slow = [s for s in every if s not in faster]
    assert all(table[s] >= sum(table[Segment(chain, n, n + 1, "keep")]
               for n in range(s.start, s.end)) for s in slow)  # fmt: skip


def test_a_fit_brings_a_segment_nearer_to_what_it_was():
    traced = trace_modules(tiny(), PICTURES.pixels[:1])
    (chain,) = chains_of(traced)
    segment = next(s for s in chain.segments(7) if s.kind == "merge" and s.activations)
    network = linearize(traced, [segment])
    original = segment_as_it_is(traced, segment)

    def error():
        linear = network.get_submodule(segment.name)
        inputs = []
        hook = linear.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        with torch.no_grad():
            network(PICTURES.pixels)
            hook.remove()
            return float(F.mse_loss(linear(inputs[0]), original(inputs[0])))

    before, state = error(), copy.deepcopy(network.state_dict())
    Fit(PICTURES, lambda p: p, 0)(network, traced, segment)
    assert error() == before
    Fit(PICTURES, lambda p: p, 30)(network, traced, segment)
    assert error() < 0.8 * before
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, state[k])}
    assert changed
    assert all(name.startswith(segment.name) for name in changed)
    assert all("running" not in name for name in changed)


def test_a_fit_that_makes_it_worse_is_undone(monkeypatch):
    from secateur.pruning.merging import segment_fit

    monkeypatch.setattr(segment_fit, "RATE", 1e6)
    traced = trace_modules(tiny(), PICTURES.pixels[:1])
    (chain,) = chains_of(traced)
    segment = next(s for s in chain.segments(7) if s.kind == "merge" and s.activations)
    network = linearize(traced, [segment])
    state = copy.deepcopy(network.state_dict())
    FIT(network, traced, segment)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_a_merge_without_activations_costs_nothing():
    images = batch(3, 8, 8).float()
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(),
        nn.Linear(32, 2),
    ).eval()  # fmt: skip
    traced = trace_modules(network, images)
    (chain,) = chains_of(traced)
    losses = measure_losses(
        traced, list(chain.segments(7)), Fit(PICTURES, lambda p: p, 0),
        Images(images, torch.zeros(len(images), dtype=torch.int64), ()), lambda p: p, 6,
    )  # fmt: skip
    free = {(s.start, s.end) for s in losses if s.kind == "merge" and not losses[s]}
    assert (0, 2) in free
    assert {(s.start, s.end) for s in losses if s.activations} == {(0, 3), (1, 3)}


@pytest.fixture(scope="module")
def shallow():
    return reach(tiny(), 0.6, fit=FIT)


def test_the_merged_network_can_be_exported_and_quantized(shallow, tmp_path):
    path = secateur.export(shallow.merged, tmp_path / "f.onnx", SHAPE)
    scores = _run(path)
    with torch.no_grad():
        expected = shallow.merged(PICTURES.pixels).numpy()
    assert np.abs(scores - expected).max() < 1e-4 * np.abs(expected).max()
    quantized = secateur.quantize(shallow.merged, PICTURES.pixels, method="minmax")
    scores = _run(quantized.save(tmp_path / "q.onnx"))
    assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] > 0.95


def _run(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: PICTURES.pixels.numpy()})[0]


def test_the_merged_network_can_be_pruned(shallow):
    example = PICTURES.pixels[:1].double()
    network = lively(copy.deepcopy(shallow.merged), PICTURES.pixels.double())
    plan = secateur.plan_removal(network, example, 0.5, round_to=1)
    smaller, masked = secateur.remove(network, plan), secateur.apply_masks(network, plan)
    assert_same(masked, smaller, PICTURES.pixels.double(), 1e-12)
    count = [sum(p.numel() for p in each.parameters()) for each in (smaller, network)]
    assert count[0] < 0.5 * count[1]


def test_the_linear_network_trains_and_is_then_merged(shallow):
    network = copy.deepcopy(shallow.linearized).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(network(PICTURES.pixels), PICTURES.labels).backward()
        optimizer.step()
    network = network.double().eval()
    merged = secateur.merge_segments(network)
    assert_same(network, merged, PICTURES.pixels.double(), 1e-10)
    assert_same(secateur.merge_segments(merged), merged, PICTURES.pixels.double(), 0)


def test_wrong_arguments_are_refused():
    network, images = tiny(), PICTURES.pixels
    with pytest.raises(ValueError, match="latency must be in"):
        secateur.merge_depth(network, images[:1], images, PICTURES.labels, 1.5)
    with pytest.raises(DataError, match="24 images and 3 labels"):
        secateur.merge_depth(network, images[:1], images, PICTURES.labels[:3])


def test_layers_are_measured_and_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(merging_depth, "NetworkTimer", lambda *_: Machine())
    monkeypatch.setattr("secateur.benchmarking.layer_timer._LayerRunner.ratio",
                        lambda self, layer: clock(layer))  # fmt: skip
    monkeypatch.setattr("secateur.benchmarking.layer_timer.LayerTimer.reference", 1.0)
    result = secateur.merge_depth(
        tiny(), PICTURES.pixels[:1], PICTURES.pixels, PICTURES.labels, 0.7, fit_steps=2, threads=1
    )
    assert result.ratio <= 0.7 * 1.05
    assert list((tmp_path / "secateur").glob("latency-*.json"))
    assert str(result).startswith(f"{result.original:.3f} ms -> ")
