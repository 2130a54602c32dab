"""Any network that can be put together from these pieces, in any order."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from helpers.odd_networks import batch, conv, lively, outputs, shuffled, tail
from secateur.benchmarking.cost import parameters
from secateur.pruning.find import find_prunable

IMAGES = batch(3, 8, 8, count=4)


class Residual(nn.Module):
    def __init__(self, body, outputs, channels):
        super().__init__()
        self.body, self.project = body, conv(outputs, channels, 1)

    def forward(self, x):
        return x + self.project(self.body(x))


class Beside(nn.Module):
    """The channels as they are, and what a body makes of them."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return torch.cat([x, self.body(x)], 1)


class Half(nn.Module):
    """Each half its own way; shuffled after, as in ShuffleNetV2, or not."""

    def __init__(self, first, second, groups):
        super().__init__()
        self.first, self.second, self.groups = first, second, groups

    def forward(self, x):
        a, b = x.chunk(2, 1)
        return shuffled(torch.cat([self.first(a), self.second(b)], 1), self.groups)


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a, self.b = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x):
        z = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x * torch.sigmoid(self.b(F.silu(self.a(z))))[:, :, None, None]


def bodies(depth):
    """A strategy for functions from a width to (module, width)."""

    def simple(make):
        return st.just(lambda channels: (make(channels), channels))

    activations = st.sampled_from(
        [nn.ReLU(), nn.Sigmoid(), nn.Hardswish(), nn.GELU(), nn.Tanh(), nn.Softplus()]
    )
    leaves = [
        st.integers(1, 4).map(
            lambda quarter: lambda channels: (conv(channels, 4 * quarter), 4 * quarter)
        ),
        activations.map(lambda activation: lambda channels: (activation, channels)),
        simple(nn.BatchNorm2d),
        simple(lambda channels: nn.BatchNorm2d(channels, affine=False)),
        simple(lambda channels: conv(channels, channels, groups=channels)),
        simple(lambda channels: conv(channels, channels, groups=2)),
        simple(lambda channels: nn.GroupNorm(2, channels)),
        simple(lambda channels: nn.ChannelShuffle(2)),
        simple(lambda channels: nn.MaxPool2d(3, 1, 1)),
        simple(lambda channels: nn.AvgPool2d(3, 1, 1)),
        simple(Gate),
        simple(nn.PReLU),
    ]
    if depth == 0:
        return st.one_of(leaves)
    inner = chains(depth - 1, 2)

    def residual(build):
        def make(channels):
            body, width = build(channels)
            return Residual(body, width, channels), channels

        return make

    def beside(build):
        def make(channels):
            body, width = build(channels)
            return Beside(body), channels + width

        return make

    def half(pair):
        def make(channels):
            (a, first), (b, second) = (build(channels // 2) for build in pair[:2])
            same = nn.Sequential(b, conv(second, first, 1))
            return Half(a, same, pair[2]), 2 * first

        return make

    def again(build):
        def make(channels):
            body, width = build(channels)
            block = nn.Sequential(body, conv(width, channels, 1))
            return nn.Sequential(block, nn.ReLU(), block), channels

        return make

    return st.one_of(
        *leaves,
        inner.map(residual),
        inner.map(beside),
        st.tuples(inner, inner, st.sampled_from([1, 2])).map(half),
        inner.map(again),
    )


def chains(depth, most):
    def chain(builds):
        def make(channels):
            modules = []
            for build in builds:
                module, channels = build(channels)
                modules.append(module)
            return nn.Sequential(*modules), channels

        return make

    return st.lists(bodies(depth), min_size=1, max_size=most).map(chain)


def flat_tail(channels):
    return nn.Sequential(
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10), nn.ELU()),
        nn.Linear(10, 3),
    )


@pytest.mark.filterwarnings("ignore::secateur.pruning.removal.NothingRemovedWarning")
@seed(0)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    build=chains(2, 4),
    end=st.sampled_from([tail, flat_tail]),
    fraction=st.floats(0.2, 0.95),
    round_to=st.sampled_from([1, 1, 1, 4, 8, 16]),
    importance=st.sampled_from(["random", "l1", "l2"]),
)
def test_removed_is_masked(build, end, fraction, round_to, importance):
    torch.manual_seed(0)
    body, width = build(8)
    network = lively(nn.Sequential(conv(3, 8), body, conv(width, 8, 1), end(8)), IMAGES)
    plan = secateur.plan_removal(network, IMAGES, fraction, importance, round_to=round_to)
    masked, removed = secateur.apply_masks(network, plan), secateur.remove(network, plan)
    expected = outputs(masked, IMAGES)
    assert (expected - outputs(removed, IMAGES)).abs().max() <= 1e-9 * expected.abs().max()
    # Of very few channels every ReLU may be dead: equal, but that would say nothing.
    assume(expected.std(0).max() > 1e-4 * expected.abs().max())
    groups = find_prunable(network, IMAGES).groups
    assert "2" in {group.name for group in groups}  # nothing counts positions there
    if any(group.width(fraction, round_to) < group.steps for group in groups if not group.balanced):
        assert parameters(removed) < parameters(network)
        assert not torch.equal(outputs(masked, IMAGES), outputs(network, IMAGES))
