"""A merged segment computes what its linear segment does, on random chains."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.odd_networks import Net, batch, lively, outputs
from secateur.pruning.merging.chains import chains_of
from secateur.pruning.merging.links import Segment, Window
from secateur.pruning.merging.rewrite import linearize, merge_segments
from secateur.pruning.merging.traced import trace_modules

SIZE = (15, 14)


@st.composite
def random_layers(draw, channels=None, outputs=None, stride=None):
    """A convolution, perhaps a batch-norm, perhaps an activation; in channels that groups allow."""
    inputs = channels or draw(st.sampled_from([2, 4, 6]))
    outputs = outputs or draw(st.sampled_from([2, 4, 6]))
    groups = draw(st.sampled_from([g for g in (1, 2, inputs) if not (inputs % g or outputs % g)]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 2), (1, 3)]))
    padding = draw(st.sampled_from([(0, 0), (1, 0), (1, 1)]))
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride or draw(st.sampled_from([1, 1, 2])), padding,
        dilation=draw(st.sampled_from([1, 1, 2])), groups=groups, bias=draw(st.booleans()),
    )  # fmt: skip
    layers = [conv]
    if draw(st.booleans()):
        layers.append(nn.BatchNorm2d(outputs))
    if draw(st.booleans()):
        layers.append(draw(st.sampled_from([nn.ReLU, nn.SiLU, nn.Hardswish, nn.ReLU6]))())
    return layers, outputs


class Residual(nn.Module):
    def __init__(self, body, projection=None):
        super().__init__()
        self.body, self.projection = body, projection

    def forward(self, x):
        way = x if self.projection is None else self.projection(x)
        return self.body(x) + way


@st.composite
def random_blocks(draw, channels):
    """A residual block: 3x3 or 1x1 convolutions that keep the size, and what is added."""
    width, stride = draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 1, 2]))
    ends = channels if stride == 1 and draw(st.booleans()) else draw(st.sampled_from([2, 4]))
    groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
    body = nn.Sequential(
        nn.Conv2d(channels, width, 3, stride, 1, groups=groups), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width), nn.BatchNorm2d(width),
        nn.ReLU6(), nn.Conv2d(width, ends, 1, groups=groups, bias=False),
    )  # fmt: skip
    projection = None
    if ends != channels or stride != 1:
        kernel = draw(st.sampled_from([1, 3]))
        conv = nn.Conv2d(channels, ends, kernel, stride, kernel // 2, groups=groups)
        projection = nn.Sequential(conv, nn.BatchNorm2d(ends))
    return [Residual(body, projection), *([nn.ReLU()] if draw(st.booleans()) else [])], ends


@st.composite
def random_networks(draw):
    channels = draw(st.sampled_from([2, 4]))
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        block = draw(st.booleans())
        more, channels = draw(random_blocks(channels) if block else random_layers(channels))
        parts += more
    return nn.Sequential(*parts)


@settings(deadline=None, max_examples=60)
@given(network=random_networks(), data=st.data())
def test_a_merged_segment_computes_the_same(network, data):
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    images = batch(first.in_channels, *SIZE, count=3)
    try:
        network = lively(network, images)
    except (RuntimeError, ValueError):  # the image has become smaller than a kernel
        return
    traced = trace_modules(network, images)
    segments = [
        segment
        for chain in chains_of(traced)
        for segment in chain.segments(99)
        if segment.kind == "merge"
    ]
    if not segments:
        return
    chosen = []
    while segments:
        chosen.append(data.draw(st.sampled_from(segments)))
        segments = [segment for segment in segments if apart(segment, chosen[-1])]
    linear = linearize(traced, chosen)
    merged = merge_segments(linear)
    convs = dict(merged.named_modules())
    for segment in chosen:
        conv = convs[segment.name]
        assert isinstance(conv, nn.Conv2d)
        window = Window(conv.kernel_size, conv.stride, conv.padding)
        assert (window, conv.groups) == (segment.window, segment.groups)
    expected, actual = outputs(linear, images), outputs(merged, images)
    assert expected.shape == outputs(network, images).shape
    assert (expected - actual).abs().max() <= 1e-12 * expected.abs().max()


def apart(first, second):
    """Whether no link is in both segments."""
    return first.chain is not second.chain or first.end <= second.start or second.end <= first.start


def test_segments_next_to_each_other_are_merged_apart():
    images = batch(3, 12, 12)
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(4)))
    traced = trace_modules(lively(network, images), images)
    (chain,) = chains_of(traced)
    pair = [Segment(chain, 0, 2, "merge"), Segment(chain, 2, 4, "merge")]
    merged = merge_segments(linearize(traced, pair))
    assert [conv.kernel_size for conv in merged.children()] == [(5, 5), (5, 5)]
    expected = outputs(network, images)
    assert (outputs(merged, images) - expected).abs().max() <= 1e-12 * expected.abs().max()


def without_activations(network):
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.SiLU | nn.Hardswish):
            network.set_submodule(name, nn.Identity())
    return network


def whole(traced) -> Segment:
    (chain,) = chains_of(traced)
    return Segment(chain, 0, len(chain.links), "merge")


def test_without_inner_padding_a_merged_network_is_the_network_without_activations():
    images = batch(4, 16, 15)
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, groups=2), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 6, 1, bias=False), nn.Hardswish(),
        nn.Conv2d(6, 4, (1, 3), (1, 2)),
    )  # fmt: skip
    traced = trace_modules(lively(network, images), images)
    merged = merge_segments(linearize(traced, [whole(traced)]))
    expected = outputs(without_activations(network), images)
    assert (outputs(merged, images) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert [type(m) for m in merged.children()] == [nn.Conv2d]


def test_with_padding_only_the_border_differs_from_the_network_without_activations():
    images = batch(4, 16, 16)
    network = nn.Sequential(
        Residual(
            nn.Sequential(
                nn.Conv2d(4, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
                nn.ReLU6(), nn.Conv2d(8, 4, 1),
            )
        ),
        nn.ReLU(),
        Residual(
            nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1)),
            nn.Conv2d(4, 6, 1, 2),
        ),
    )  # fmt: skip
    traced = trace_modules(lively(network, images), images)
    merged = merge_segments(linearize(traced, [whole(traced)]))
    with torch.no_grad():
        expected, actual = without_activations(network)(images), merged(images)
    difference, scale = (expected - actual).abs(), expected.abs().max()
    assert difference[..., 2:-2, 2:-2].max() <= 1e-12 * scale
    assert difference.max() > 1e-3 * scale


@pytest.mark.parametrize(("groups", "merged"), [((4, 4), 4), ((4, 2), 2), ((4, 1), 1), ((2, 4), 2)])
def test_groups_of_a_merged_convolution_divide_those_of_its_parts(groups, merged):
    images = batch(4, 8, 8)
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=groups[0]), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=groups[1])
    )
    traced = trace_modules(lively(network, images), images)
    segment = whole(traced)
    assert segment.groups == merged
    linear = linearize(traced, [segment])
    expected, actual = outputs(linear, images), outputs(merge_segments(linear), images)
    assert (expected - actual).abs().max() <= 1e-12 * expected.abs().max()


def test_an_input_that_is_added_and_projected_is_merged_into_one_kernel():
    """A RepVGG block in training: two convolutions and the input."""
    images = batch(4, 9, 9)
    network = Net(
        lambda self, x: self.wide(x) + self.narrow(x), wide=nn.Conv2d(4, 4, 3, padding=1),
        narrow=nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    network = lively(network, images)
    traced = trace_modules(network, images)
    merged = merge_segments(linearize(traced, [whole(traced)]))
    expected = outputs(network, images)
    assert (outputs(merged, images) - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert len(list(merged.children())) == 1
