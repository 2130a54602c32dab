import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.odd_networks import Net, conv, reused, shuffled, tail
from secateur.errors import NetworkError
from secateur.models.build import build_network
from secateur.pruning.channels import Prunable
from secateur.pruning.find import find_prunable
from secateur.recipe import Network


def found(network, *shape) -> Prunable:
    return find_prunable(network, torch.zeros(2, *(shape or (3, 8, 8))))


def sizes(prunable):
    return {group.name: group.units for group in prunable.groups}


def reasons(prunable):
    return {layer.name: layer.reason for layer in prunable.protected}


def places(group):
    """Tensor and axis to the entries that each unit has there."""
    return {
        (member.axis.tensor, member.axis.axis): [
            member.index[member.unit == unit].tolist() for unit in range(group.units)
        ]
        for member in group.members
        if member.axis.axis >= 0
    }


def test_a_unit_is_an_output_its_norm_and_what_reads_it() -> None:
    network = nn.Sequential(conv(3, 2), nn.BatchNorm2d(2), nn.ReLU(), conv(2, 4, bias=False))
    (group,) = found(network).groups
    single = [[0], [1]]
    assert places(group) == {
        ("0.weight", 0): single,
        ("0.bias", 0): single,
        ("1.weight", 0): single,
        ("1.bias", 0): single,
        ("1.running_mean", 0): single,
        ("1.running_var", 0): single,
        ("3.weight", 1): single,
    }
    roles = {member.axis.tensor: member.role for member in group.members}
    assert [roles[f"{name}.weight"] for name in "013"] == ["makes", "follows", "reads"]
    assert reasons(found(network)) == {"3": "they are the network's output"}


def test_flattening_takes_each_map_along() -> None:
    network = nn.Sequential(conv(1, 2), nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten(), nn.Linear(6, 2))
    (group,) = found(network, 1, 8, 8).groups
    assert places(group)["3.weight", 1] == [[0, 1, 2], [3, 4, 5]]


def test_flattening_the_channels_last_takes_every_other_input_along() -> None:
    def call(network, x):
        return network.fc(F.adaptive_avg_pool2d(network.a(x), 2).permute(0, 2, 3, 1).flatten(1))

    (group,) = found(Net(call, a=conv(3, 2), fc=nn.Linear(8, 2))).groups
    assert places(group)["fc.weight", 1] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_concatenation_shifts_what_comes_second() -> None:
    def call(network, x):
        return network.b(network.norm(torch.cat([network.a(x), x, network.c(x)], 1)))

    parts = {"a": conv(3, 2), "c": conv(3, 2), "norm": nn.BatchNorm2d(7), "b": conv(7, 1)}
    first, second = found(Net(call, **parts)).groups
    assert places(first)["b.weight", 1] == [[0], [1]]
    assert places(second)["b.weight", 1] == places(second)["norm.running_var", 0] == [[5], [6]]


def test_an_addition_makes_one_unit_of_two_outputs() -> None:
    network = Net(
        lambda n, x: n.c((n.a(x) + n.b(x)).relu()), a=conv(3, 2), b=conv(3, 2), c=conv(2, 1)
    )
    (group,) = found(network).groups
    assert group.name == "a"
    assert group.channels == 2
    assert places(group)["a.weight", 0] == places(group)["b.weight", 0] == [[0], [1]]


def test_a_reused_module_joins_what_it_reads_with_what_it_makes() -> None:
    group = found(reused()).groups[0]
    assert places(group)["3.0.0.weight", 0] == places(group)["3.0.0.weight", 1]


def test_a_grouped_convolution_loses_whole_groups() -> None:
    network = nn.Sequential(conv(3, 4), conv(4, 6, groups=2), nn.ReLU(), conv(6, 1))
    (group,) = found(network).groups
    assert group.units == group.steps == 2
    assert places(group)["0.weight", 0] == [[0, 1], [2, 3]]
    assert places(group)["1.weight", 0] == places(group)["3.weight", 1] == [[0, 1, 2], [3, 4, 5]]


def test_a_group_norm_keeps_the_channels_of_a_group_together() -> None:
    network = nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4), conv(4, 1))
    (group,) = found(network).groups
    assert places(group)["1.weight", 0] == [[0, 1], [2, 3]]
    one = found(nn.Sequential(conv(3, 4), nn.GroupNorm(1, 4), conv(4, 1)))
    assert [group.units for group in one.groups] == [4]


def test_halves_that_meet_shrink_evenly() -> None:
    network = Net(lambda n, x: n.b(torch.add(*n.a(x).chunk(2, 1))), a=conv(3, 6), b=conv(3, 1))
    (group,) = found(network).groups
    assert group.balanced
    assert places(group)["a.weight", 0] == [[0, 3], [1, 4], [2, 5]]
    assert (group.steps, group.channels) == (3, 6)


def test_a_shuffle_in_three_groups_takes_three_channels_at_a_time() -> None:
    network = Net(lambda n, x: n.b(shuffled(n.a(x), 3)), a=conv(3, 12), b=conv(12, 1))
    (group,) = found(network).groups
    assert (group.units, group.steps) == (12, 4)
    assert [group.width(fraction) for fraction in (0, 0.5, 0.74, 0.75, 0.99)] == [4, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("fraction", "round_to", "width"),
    [(0.5, 1, 6), (0.5, 4, 8), (0.5, 8, 8), (0.99, 1, 1), (0.99, 16, 12), (0.29, 1, 9), (0, 8, 12)],
)
def test_widths_are_rounded_up_to_the_full_width(fraction, round_to, width) -> None:
    (group,) = found(nn.Sequential(conv(3, 12), conv(12, 1))).groups
    assert group.width(fraction, round_to) == width


def test_rounding_holds_for_every_layer_that_makes_the_channels() -> None:
    network = nn.Sequential(conv(3, 12), conv(12, 24, groups=12), conv(24, 1))
    (group,) = found(network).groups
    assert group.stride(8) == 8  # of 12; the 24 are then a multiple of 16
    assert group.width(0.5, 4) == 8
    eights = nn.Sequential(conv(3, 64), conv(64, 64, groups=8), conv(64, 1))
    assert found(eights).groups[0].stride(16) == 2  # sets of eight channels


def test_a_group_says_why_its_members_belong() -> None:
    network = nn.Sequential(
        *(conv(1, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4, groups=4), nn.ChannelShuffle(2)),
        *(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(24, 2)),
    )
    (group,) = found(network, 1, 8, 8).groups
    assert str(group).splitlines() == [
        "0: 4 channels or sets of them",
        "0: makes them",
        "1: normalizes each on its own",
        "3: makes them",
        "3: filters each on its own",
        "7: reads them",
        "channel_shuffle at 4: counts them by position",
    ]


def test_words_name_additions_and_mixtures() -> None:
    network = Net(lambda n, x: n.b(n.a(x) + n.a(x).softmax(1)), a=conv(3, 4), b=conv(4, 1))
    assert reasons(found(network))["a"] == (
        "its channels all hang together: Net: mixes them all (softmax at Net)"
    )
    network = Net(lambda n, x: n.c(n.a(x) - n.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 1))
    assert "Net: subtracts them pair by pair" in found(network).groups[0].words


def test_a_group_is_found_by_name_and_else_the_reason_is_told() -> None:
    prunable = found(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)))
    assert prunable.group("0").units == 4
    with pytest.raises(
        NetworkError, match=r"cannot be pruned \(2\): expected one of 0, found they"
    ):
        prunable.group("2")
    with pytest.raises(NetworkError, match=r"cannot be pruned \(x\): expected one of 0$"):
        prunable.group("x")


def test_a_layer_of_which_some_channels_stay_says_how_many() -> None:
    def call(network, x):  # the published shortcut without weights: two channels of zeros
        y = network.a(x)
        return network.c(network.b(y) + F.pad(y, (0, 0, 0, 0, 1, 1)))

    prunable = found(Net(call, a=conv(3, 4), b=conv(4, 6), c=conv(6, 1)))
    assert sizes(prunable) == {"a": 4}
    assert reasons(prunable)["b"] == "2 of 6 channels: add at Net meets channels that must stay"


@pytest.mark.parametrize("stem", ["paper", "cifar"])
def test_shufflenet_loses_channels_everywhere(stem) -> None:
    network = build_network(Network(name="shufflenet_v2_x1_0", resolution=28, stem=stem), 1, 10)
    prunable = found(network, 1, 28, 28)
    blocks = [f"stage{s}.{i}" for s, count in ((2, 4), (3, 8), (4, 4)) for i in range(count)]
    middles = [f"{block}.branch2.0" for block in blocks]
    stages = [f"stage{s}.0.branch1.2" for s in (2, 3, 4)]
    assert {group.name for group in prunable.groups} == {"conv1.0", *middles, *stages, "conv5.0"}
    assert [g.name for g in prunable.groups if g.balanced] == stages
    assert reasons(prunable) == {"fc": "they are the network's output"}


def test_alexnet_and_mobilenet_lose_channels_everywhere_but_at_the_classes() -> None:
    alexnet = found(build_network(Network(name="alexnet", resolution=64), 1, 10), 1, 64, 64)
    assert sizes(alexnet) == {
        **{f"features.{i}": n for i, n in ((0, 64), (3, 192), (6, 384), (8, 256), (10, 256))},
        "classifier.1": 4096,
        "classifier.4": 4096,
    }
    assert reasons(alexnet) == {"classifier.6": "they are the network's output"}
    assert places(alexnet.groups[4])["classifier.1.weight", 1][1] == list(range(36, 72))
    mobilenet = found(build_network(Network(name="mobilenet_v2", resolution=28), 1, 10), 1, 28, 28)
    assert reasons(mobilenet) == {"classifier.1": "they are the network's output"}
    assert len(mobilenet.groups) == 17 + 1 + 7  # expansions and stem, last, and residual streams


def test_finding_leaves_the_network_alone() -> None:
    network = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), conv(4, 2), tail(2)).train()
    network[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    found(network, 1, 4, 4)
    assert network.training
    assert not network[1].training
    assert not network[0]._forward_hooks
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
