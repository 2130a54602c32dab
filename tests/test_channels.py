from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import NetworkError
from secateur.networks import build_network
from secateur.pruning.channels import Consumer, Feed, Prunable, find_prunable
from secateur.recipe import Network


def torchvision_s(name: str, side: int, **more: str) -> Prunable:
    config = Network(name=name, resolution=side, **more)  # type: ignore[arg-type]
    return find_prunable(build_network(config, 1, 10), torch.zeros(1, 1, side, side))


def found(model: nn.Module, *shape: int) -> Prunable:
    return find_prunable(model, torch.zeros(2, *shape))


def test_all_of_alexnet() -> None:
    prunable = torchvision_s("alexnet", 64)
    assert [group.name for group in prunable.groups] == [f"features.{i}" for i in (0, 3, 6, 8, 10)]
    assert [group.channels for group in prunable.groups] == [64, 192, 384, 256, 256]
    assert prunable.groups[0].consumers == (Consumer("features.3"),)
    assert prunable.groups[-1].consumers == (Consumer("classifier.1", repeat=36),)
    feeds = {linear.name: linear.feeds for linear in prunable.linears}
    assert feeds == {
        "classifier.1": Feed("classifier.4", rectified=True),
        "classifier.4": Feed("classifier.6", rectified=True),
        "classifier.6": None,
    }
    assert prunable.protected == ()


def test_mobilenet_loses_stem_expansions_and_what_no_addition_sees() -> None:
    prunable = torchvision_s("mobilenet_v2", 28)
    expansions = [f"features.{i}.conv.0.0" for i in range(2, 18)]
    unadded = ["features.1.conv.1", "features.17.conv.2"]  # projections no shortcut joins
    assert {group.name for group in prunable.groups} == {
        *("features.0.0", "features.18.0", *expansions, *unadded)
    }
    groups = {group.name: group for group in prunable.groups}
    stem = groups["features.0.0"]
    assert stem.owners == ("features.0.0", "features.0.1", "features.1.conv.0.1", *stem.depthwise)
    assert stem.depthwise == ("features.1.conv.0.0",)
    assert groups["features.18.0"].consumers == (Consumer("classifier.1"),)
    reasons = {layer.name: layer.reason for layer in prunable.protected}
    assert reasons["features.3.conv.2"] == "output reaches add at node add"
    assert len(reasons) == 15


@pytest.mark.parametrize("stem", ["paper", "cifar"])
def test_shufflenet_loses_stem_branch_middles_and_last_convolution(stem: str) -> None:
    prunable = torchvision_s("shufflenet_v2_x1_0", 28, stem=stem)
    blocks = [f"stage{s}.{i}" for s, count in ((2, 4), (3, 8), (4, 4)) for i in range(count)]
    middles = [f"{block}.branch2.0" for block in blocks]
    assert [group.name for group in prunable.groups] == ["conv1.0", *middles, "conv5.0"]
    # The stem forks: one branch filters each channel on its own before the next layer reads it.
    stem_group = prunable.groups[0]
    assert stem_group.depthwise == ("stage2.0.branch1.0",)
    assert {c.module for c in stem_group.consumers} == {"stage2.0.branch1.2", "stage2.0.branch2.0"}
    reasons = {layer.name: layer.reason for layer in prunable.protected}
    assert reasons["stage2.1.branch2.5"] == "output reaches cat at node cat_1"
    assert reasons["stage3.0.branch1.0"].startswith("depthwise")


def test_a_group_says_why_its_members_belong() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4)),
        *(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(24, 2)),
    )
    (group,) = found(network, 1, 8, 8).groups
    assert str(group).splitlines() == [
        "0: makes 4 channels",
        "  1: normalizes each of them",
        "  3: filters each of them on its own",
        "  6: reads them, 6 inputs each",
    ]


class Forward(nn.Module):
    """Two convolutions, a norm and a linear layer, called as a test says."""

    def __init__(self, forward) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.norm, self.fc = nn.BatchNorm2d(2), nn.Linear(2, 3)
        self.call = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.b(m.a(x)), None),
        (lambda m, x: m.b(F.relu(m.norm(m.a(x)))), None),
        (lambda m, x: m.b(F.max_pool2d(m.a(x).relu(), 2)), None),
        (lambda m, x: m.fc(m.a(x).mean((-1, -2))), None),
        (lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(m.a(x), 1), 1)), None),
        (lambda m, x: m.b(m.a(x) + x), "add at node add"),
        (lambda m, x: m.b(m.a(x)) + m.a(x), "a is called 2 times"),
        (lambda m, x: m.norm(m.b(m.norm(m.a(x)))), "norm is called 2 times"),
        (lambda m, x: m.b(torch.cat([m.a(x)[:, :1], x[:, :1]], 1)), "getitem at node"),
        (lambda m, x: m.b(m.a(x).chunk(1, 1)[0]), "chunk at node chunk"),
        (lambda m, x: m.b(torch.sigmoid(m.a(x))), "sigmoid at node sigmoid"),
        (lambda m, x: m.b(m.a(x)) * m.a.weight.sum(), "a shares its weights"),
        (lambda m, x: m.fc(m.a(x).mean(3).mean(2)), "mean at node mean"),
        (lambda m, x: m.fc(m.a(x).mean([1, 2])), "mean at node mean"),
        (lambda m, x: m.fc(m.a(x)), "Linear at fc"),
        (lambda m, x: m.fc(m.a(x).transpose(1, 2).flatten(1)[:, :2]), "transpose at node"),
        (lambda m, x: m.a(x), "the network's output"),
        (lambda m, x: (m.b(m.a(x)), m.a.out_channels, m.a(x))[0], "called 2 times"),
    ],
)
def test_what_keeps_channels_apart_and_what_protects_them(forward, reason: str | None) -> None:  # type: ignore[no-untyped-def]
    prunable = found(Forward(forward), 2, 2, 2)
    reasons = {layer.name: layer.reason for layer in prunable.protected}
    if reason is None:
        assert [group.name for group in prunable.groups] == ["a"]
    else:
        assert "a" not in [group.name for group in prunable.groups]
        assert reason in reasons["a"]


class Strange(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ([nn.BatchNorm2d(4, affine=False)], "without a scale"),
        ([nn.Hardtanh(1, 2)], "Hardtanh at 1"),
        ([nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(8, 4, 1)], "Conv2d at 1"),
        ([nn.Sigmoid()], "Sigmoid at 1"),
        ([nn.Flatten(2), nn.Unflatten(2, (4, 4))], "Flatten at 1"),
        ([Strange(4, 4, 1)], "conv2d at node"),
    ],
)
def test_layers_that_do_not_keep_zero_or_order(middle: list[nn.Module], reason: str) -> None:
    prunable = found(nn.Sequential(nn.Conv2d(1, 4, 1), *middle, nn.Conv2d(4, 2, 1)), 1, 4, 4)
    assert "0" not in [group.name for group in prunable.groups]
    assert reason in {p.name: p.reason for p in prunable.protected}["0"]


def test_every_convolution_and_linear_layer_is_accounted_for() -> None:
    network = Forward(lambda m, x: m.strange(m.grouped(x)))
    network.grouped, network.strange = nn.Conv2d(2, 4, 1, groups=2), Strange(4, 4, 1)
    uncalled = "the traced network does not call it as a layer"
    assert {layer.name: layer.reason for layer in found(network, 2, 4, 4).protected} == {
        "a": uncalled,
        "b": uncalled,
        "fc": uncalled,
        "grouped": "its 2 groups are not single channels",
        "strange": uncalled,
    }


def test_a_layer_that_is_more_than_its_type_says_is_left_alone() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 1))
    special = nn.modules.linear.NonDynamicallyQuantizableLinear(4, 2)  # torch's own subclass
    network = nn.Sequential(normed, nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    prunable = found(network.append(special), 1, 4, 4)
    assert prunable.names == ()
    reasons = {layer.name: layer.reason for layer in prunable.protected}
    assert set(reasons) == {"0", "1", "4"}
    assert "not a plain Linear" in reasons["4"]


def test_only_a_lone_linear_reader_without_live_dropout_makes_dead_neurons_removable() -> None:
    def feed(*between: nn.Module) -> Feed | None:
        network = nn.Sequential(nn.Linear(2, 2), *between, nn.Linear(2, 2))
        return found(network, 2).linears[0].feeds

    assert feed(nn.Dropout()) == Feed("2", rectified=False)
    assert feed(nn.Dropout(), nn.ReLU()) == Feed("3", rectified=True)
    assert feed(nn.Sigmoid()) is None

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    assert feed(Noisy()) is None


def test_finding_leaves_the_network_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found(network, 1, 4, 4)
    assert network[1].training
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_an_untraceable_network_is_refused_by_the_module_at_fault() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(nn.ReLU(), Branching()))
    with pytest.raises(NetworkError, match=r"cannot trace network \(1\.1\)"):
        found(network, 1, 4, 4)
    with pytest.raises(NetworkError, match=r"cannot trace network \(Forward\)"):
        found(Forward(lambda m, x: x if m.a(x).sum() > 0 else -x), 2, 4, 4)


def test_a_shape_that_does_not_run_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"does not run \(input \(2, 3, 4, 4\)\)"):
        found(nn.Sequential(nn.Conv2d(1, 1, 1)), 3, 4, 4)
