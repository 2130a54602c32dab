"""Which convolutions are a chain, and which residual adds belong to it."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

from helpers.odd_networks import Net, assert_same, batch, conv, lively, outputs
from secateur.errors import NetworkError
from secateur.pruning.blocks import find_blocks
from secateur.pruning.merging.chains import chains_of, find_chains
from secateur.pruning.merging.rewrite import from_json, linearize, merge_segments, to_json
from secateur.pruning.merging.traced import trace_modules
from secateur.pruning.plan import Plan
from secateur.pruning.surgery import remove

IMAGES = batch(3, 32, 32)


def convs(chain):
    return [link.layer.conv for link in chain.links]


def test_mobilenet_is_one_chain_with_its_residual_adds():
    (chain,) = find_chains(torchvision.models.mobilenet_v2(num_classes=5), IMAGES[:1].float())
    assert len(chain.links) == 52
    # Projections have no activation; the last convolution has one.
    assert [link.activation for link in chain.links[:6]] == [True, True, False, True, True, False]
    assert [(skip.start, skip.end, skip.projection) for skip in chain.skips[:2]] == [
        (6, 9, None), (12, 15, None)
    ]  # fmt: skip
    assert len(chain.skips) == 10
    assert not chain.kept


def test_blocks_of_resnet_are_one_chain_with_projections_aside():
    stem, chain = find_chains(torchvision.models.resnet18(num_classes=5), IMAGES[:1].float())
    assert convs(stem) == ["conv1"]
    assert len(chain.links) == 16
    assert [s.projection.conv for s in chain.skips if s.projection] == [
        f"layer{n}.0.downsample.0" for n in (2, 3, 4)
    ]
    assert all(link.activation for link in chain.links)


def test_a_projection_that_runs_first_is_aside_too():
    def call(self, x):
        way = self.project(x)
        return way + self.second(F.relu(self.first(x)))

    network = Net(
        call, project=nn.Sequential(conv(3, 8, 1), nn.BatchNorm2d(8)), first=conv(3, 4),
        second=conv(4, 8),
    )  # fmt: skip
    (chain,) = find_chains(network.eval(), IMAGES[:1].float())
    assert convs(chain) == ["first", "second"]
    assert [skip.projection.norm for skip in chain.skips] == ["project.1"]


def test_activations_that_are_no_modules_are_seen():
    network = Net(lambda self, x: self.b(F.relu6(self.a(x)).sigmoid()), a=conv(3, 4), b=conv(4, 4))
    first, second = find_chains(network, IMAGES[:1].float())
    assert first.links[0].activation  # the second activation ends the chain
    assert convs(second) == ["b"]


def test_a_value_that_is_read_before_its_activation_ends_the_chain():
    def call(self, x):
        value = self.a(x)
        return self.c(F.relu(self.b(F.relu(value)))) + value.mean((2, 3), keepdim=True)

    network = Net(call, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4))
    first, second = find_chains(network, IMAGES[:1].float())
    assert (convs(first), convs(second)) == (["a"], ["b", "c"])
    assert not first.links[0].activation


def halves(self, x):
    first, second = self.a(x).chunk(2, 1)
    return torch.cat([first, self.b(second)], 1)


ENDS = {
    "a split": Net(halves, a=conv(3, 4), b=conv(2, 2)),
    "a pool": nn.Sequential(conv(3, 4), nn.MaxPool2d(2), conv(4, 4)),
    "circular padding": nn.Sequential(conv(3, 4), conv(4, 4, padding_mode="circular")),
    "padding that is wider at one side": nn.Sequential(
        conv(3, 4), nn.Conv2d(4, 4, 2, padding="same")
    ),
    "shared weights": Net(lambda self, x: self.b(self.b(self.a(x))), a=conv(3, 4), b=conv(4, 4)),
    "a layer norm": nn.Sequential(conv(3, 4), nn.GroupNorm(1, 4), conv(4, 4)),
    "a gate": Net(lambda self, x: self.b(self.a(x) * self.a(x).mean()), a=conv(3, 4), b=conv(4, 4)),
    "a value that is scaled": Net(
        lambda self, x: self.b(self.a(x) + 1), a=conv(3, 4), b=conv(4, 4)
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("what", ENDS)
def test_a_chain_ends_at(what):
    chains = find_chains(ENDS[what], IMAGES[:1].float())
    assert max((len(chain.links) for chain in chains), default=0) <= 1


def test_a_boundary_that_something_else_reads_is_kept():
    def call(self, x):
        middle = self.a(x).relu()
        return self.b(middle), middle.mean()

    network = Net(call, a=conv(3, 4), b=conv(4, 4))
    (chain,) = find_chains(network, IMAGES[:1].float())
    assert chain.kept == {1}
    assert {segment.kind for segment in chain.segments(99)} == {"keep"}


def test_an_addition_that_does_not_stay_aligned_ends_the_chain():
    network = Net(
        lambda self, x: self.b(x) + self.way(x),
        b=nn.Conv2d(3, 4, 3, 2, 1),
        way=nn.Conv2d(3, 4, 2, 2),
    )
    (chain,) = find_chains(network, IMAGES[:1].float())
    assert chain.skips == ()


def test_an_addition_that_repeats_channels_ends_the_chain():
    def call(self, x):
        narrow = self.a(x)
        return self.b(narrow) + narrow

    network = Net(call, a=conv(3, 1), b=conv(1, 4))
    (chain,) = find_chains(network, IMAGES[:1].float())
    assert chain.skips == ()


def test_segments_do_not_cut_a_residual_add():
    network = nn.Sequential(
        conv(3, 4), nn.ReLU(), Net(lambda self, x: x + self.b(F.relu(self.a(x))), a=conv(4, 8),
                                   b=conv(8, 4)), nn.ReLU(), conv(4, 4)
    )  # fmt: skip
    (chain,) = find_chains(network, IMAGES[:1].float())
    assert [(s.start, s.end, s.kind) for s in chain.segments(99)] == [
        (0, 1, "keep"), (0, 3, "merge"), (0, 4, "merge"), (1, 2, "keep"), (1, 3, "merge"),
        (1, 3, "remove"), (1, 4, "merge"), (2, 3, "keep"), (3, 4, "keep"),
    ]  # fmt: skip
    assert {s.end - s.start for s in chain.segments(5)} == {1, 2}


def test_parts_of_a_network_that_looks_at_values_are_traced():
    inner = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4))
    network = Net(lambda self, x: self.body(x) if x.sum() > 0 else self.body(-x), body=inner)
    (chain,) = find_chains(network, IMAGES[:1].float())
    assert (chain.graph, convs(chain)) == ("body", ["0", "2"])
    traced = trace_modules(lively(network, IMAGES), IMAGES)
    (segment,) = (s for s in chains_of(traced)[0].segments(99) if s.kind == "merge")
    linear = linearize(traced, [segment])
    merged = merge_segments(linear)
    assert isinstance(merged.get_submodule("body.0"), nn.Conv2d)
    assert_same(linear, merged, IMAGES, 1e-12)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_networks_are_refused():
    scripted = torch.jit.script(nn.Sequential(conv(3, 4), conv(4, 4)))
    with pytest.raises(NetworkError, match="scripted"):
        find_chains(scripted, IMAGES[:1].float())


@pytest.mark.parametrize("name", ["mobilenet", "resnet"])
def test_removed_branches_are_those_that_pruning_removes(name):
    torch.manual_seed(0)
    settings = [[2, 8, 2, 1], [2, 16, 3, 2]]
    network = lively(
        torchvision.models.MobileNetV2(5, inverted_residual_setting=settings)
        if name == "mobilenet"
        else torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 1, 1], 5),
        IMAGES,
    )
    blocks = find_blocks(network, IMAGES[:1])
    traced = trace_modules(network, IMAGES[:1])
    removals = [s for chain in chains_of(traced) for s in chain.segments(0) if s.kind == "remove"]
    assert len(removals) == len(blocks)
    some = blocks[1::2]
    plan = Plan(
        blocks=tuple(b.module for b in some if not b.path),
        shortcuts=tuple(b for b in some if b.path),
    )
    shallow = linearize(traced, removals[1::2])
    assert_same(remove(network, plan), shallow, IMAGES, 1e-12)
    assert sum(p.numel() for p in shallow.parameters()) == sum(
        p.numel() for p in remove(network, plan).parameters()
    )
    assert (outputs(network, IMAGES) - outputs(shallow, IMAGES)).abs().max() > 1e-3


def test_what_a_removed_branch_leaves_is_not_overwritten():
    """An activation in place would change the input of the block, which something else reads."""

    def call(self, x):
        start = self.first(x)
        return self.last(self.act(start + self.branch(start))) + start

    network = Net(
        call, first=conv(3, 4), branch=conv(4, 4), act=nn.SiLU(inplace=True), last=conv(4, 4)
    )
    network = lively(network, IMAGES)
    traced = trace_modules(network, IMAGES[:1])
    (removal,) = (
        s for s in chains_of(traced)[0].segments(99) if (s.start, s.end, s.kind) == (1, 2, "remove")
    )
    shallow = linearize(traced, [removal])
    with torch.no_grad():
        network.branch.weight.zero_()
        network.branch.bias.zero_()
    assert_same(network, shallow, IMAGES, 1e-12)


def test_a_network_whose_graph_computes_something_else_is_refused():
    dice = random.Random(0)
    network = Net(lambda self, x: self.a(x) * dice.random(), a=conv(3, 4))
    with pytest.raises(NetworkError, match="another output of its graph"):
        find_chains(network, IMAGES[:1].float())


def test_segments_are_plain_data():
    traced = trace_modules(torchvision.models.resnet18(num_classes=5).double(), IMAGES[:1])
    segments = [s for chain in chains_of(traced) for s in chain.segments(7) if s.kind != "keep"]
    again = trace_modules(torchvision.models.resnet18(num_classes=5).double(), IMAGES[:1])
    assert from_json(again, to_json(traced, segments)) == segments
    with pytest.raises(NetworkError, match="merges of another network"):
        from_json(nn.Sequential(conv(3, 4)), to_json(traced, segments))
