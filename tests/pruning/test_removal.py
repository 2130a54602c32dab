"""The public face: one call plans, one masks, one removes."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision.models
from torch import nn

import secateur
from helpers.odd_networks import Net, assert_same, batch, conv, lively, stacked, tail
from secateur.benchmarking.cost import macs, parameters
from secateur.errors import NetworkError
from secateur.pruning.find import find_prunable
from secateur.pruning.plan import Plan
from secateur.pruning.removal import NothingRemovedWarning

IMAGES = batch(3, 16, 16)


def network(norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    torch.manual_seed(0)
    return lively(stacked(nn.Sequential(conv(16, 24), norm(24), nn.SiLU()), 24), IMAGES)


def widths(model: nn.Module, plan: Plan) -> list[int]:
    smaller = secateur.remove(model, plan)
    return [layer.out_channels for layer in smaller.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("importance", ["l1", "l2", "batch_norm", "taylor", "random"])
@pytest.mark.parametrize("scope", ["local", "global", "sensitivity"])
def test_every_criterion_and_scope_gives_a_plan_that_holds(importance, scope) -> None:
    model = network()
    model(IMAGES).square().mean().backward()
    names = [group.name for group in find_prunable(model, IMAGES).groups]
    curves = {name: [(0.3, 1.0), (0.8, 2.0 + index)] for index, name in enumerate(names)}
    before = copy.deepcopy(model)
    plan = secateur.plan_removal(model, IMAGES, 0.5, importance, scope, 1, curves=curves)
    smaller = secateur.remove(model, plan)
    assert parameters(smaller) < 0.8 * parameters(model)
    assert_same(secateur.apply_masks(model, plan), smaller, IMAGES)
    for parameter, same in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, same)
    if importance == "batch_norm":
        assert widths(model, plan)[-1] == 12  # has none, and stays


@pytest.mark.parametrize(
    ("fraction", "round_to", "expected"),
    [
        (0.5, 1, [8, 12, 6]),
        (0.5, 8, [8, 16, 8]),
        (0.5, 4, [8, 12, 8]),
        (0.9, 16, [16, 16, 12]),
        (0.99, 1, [1, 1, 1]),
        (0.0, 8, [16, 24, 12]),
    ],
)
def test_widths_that_stay(fraction, round_to, expected) -> None:
    model = network()
    plan = secateur.plan_removal(model, IMAGES, fraction, round_to=round_to)
    assert widths(model, plan) == expected


def test_the_defaults_are_half_by_l2_in_multiples_of_eight() -> None:
    model = network()
    plan = secateur.plan_removal(model, IMAGES)
    assert plan == secateur.plan_removal(model, IMAGES, 0.5, "l2", "local", 8)
    assert plan != secateur.plan_removal(model, IMAGES, 0.5, "random")
    random = [secateur.plan_removal(model, IMAGES, importance="random", seed=s) for s in (1, 1, 2)]
    assert random[0] == random[1] != random[2]


def test_float32_holds_to_a_ten_thousandth_on_the_device_and_in_the_mode_it_was_in() -> None:
    model = network().float().train()
    images = IMAGES.float()
    plan = secateur.plan_removal(model, images, round_to=1)
    assert model.training
    masked, removed = secateur.apply_masks(model, plan), secateur.remove(model, plan)
    assert masked.training
    assert removed.training
    assert_same(masked.eval(), removed.eval(), images, within=1e-4)


@pytest.mark.parametrize("objective", ["macs", "parameters"])
@pytest.mark.parametrize("target", [0.3, 0.75])
def test_a_target_is_met_and_not_by_far(objective, target) -> None:
    model = network()
    plan = secateur.plan_removal(model, IMAGES, round_to=1, objective=objective, target=target)
    smaller = secateur.remove(model, plan)
    if objective == "macs":
        left = macs(smaller, (3, 16, 16)) / macs(model, (3, 16, 16))
    else:
        left = parameters(smaller) / parameters(model)
    assert 0.8 * target < left <= target


def test_all_that_there_is_needs_no_plan() -> None:
    assert secateur.plan_removal(network(), IMAGES, objective="macs", target=1.0) == Plan()


def test_a_target_that_would_empty_a_layer_is_refused_with_what_can_be_reached() -> None:
    with pytest.raises(
        NetworkError,
        match=r"^target cannot be reached \(target = 0\.001 of macs\): expected at least 0\.\d+; a",
    ):
        secateur.plan_removal(network(), IMAGES, objective="macs", target=0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 1.0}, r"fraction must be in \[0, 1\), found 1.0"),
        ({"fraction": -0.5}, r"fraction must be in \[0, 1\), found -0.5"),
        ({"importance": "luck"}, "importance: Input should be 'l1', .*, found 'luck'"),
        ({"scope": "here"}, "scope: Input should be .*, found 'here'"),
        ({"round_to": 0}, "round_to: Input should be greater than or equal to 1, found 0"),
        ({"objective": "macs"}, "objective and target: .*both or neither"),
        ({"target": 0.5}, "objective and target: .*both or neither"),
        ({"objective": "size", "target": 0.5}, "objective: Input should be .*, found 'size'"),
        ({"objective": "macs", "target": 0}, "target: Input should be greater than 0, found 0"),
        ({"fractions": {"0": 1.5}}, "fractions.0: Input should be less than 1, found 1.5"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        secateur.plan_removal(network(), IMAGES, **arguments)


def test_what_scores_need_is_asked_for_by_name() -> None:
    with pytest.raises(NetworkError, match=r"no gradients to judge by \(0.weight\); run the loss"):
        secateur.plan_removal(network(), IMAGES, importance="taylor")
    with pytest.raises(NetworkError, match=r"no sensitivity curve \(0\); scan this layer first"):
        secateur.plan_removal(network(), IMAGES, scope="sensitivity")


def test_where_nothing_can_go_the_plan_is_empty() -> None:
    model = Net(lambda n, x: n.a(x).mean((2, 3)), a=conv(3, 4))
    for scope in ("local", "global"):
        with pytest.warns(NothingRemovedWarning, match="a: they are the network's output"):
            plan = secateur.plan_removal(model, torch.zeros(1, 3, 8, 8), scope=scope)  # type: ignore[arg-type]
        assert plan == Plan()
        assert secateur.remove(model, plan).a.weight.shape == (4, 3, 3, 3)


def test_a_plan_for_another_network_is_refused() -> None:
    plan = secateur.plan_removal(network(), IMAGES)
    other = nn.Sequential(conv(3, 16), conv(16, 24), tail(24))
    for act in (secateur.remove, secateur.apply_masks):
        with pytest.raises(
            NetworkError, match=r"plan does not fit the network \(1.bias\)|\(1.weight"
        ):
            act(other, plan)


def test_a_second_plan_goes_on_from_the_first() -> None:
    model = network()
    first = secateur.plan_removal(model, IMAGES, 0.5, round_to=1)
    smaller = secateur.remove(model, first)
    second = secateur.plan_removal(smaller, IMAGES, 0.5, round_to=1)
    assert_same(
        secateur.remove(smaller, second), secateur.remove(model, first.then(second)), IMAGES, 1e-12
    )


def test_resnet18_at_half_of_every_width() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    plan = secateur.plan_removal(model, torch.zeros(1, 3, 224, 224), 0.5, "random", round_to=1)
    smaller = secateur.remove(model, plan)
    assert parameters(smaller) == 3_055_880
    assert macs(smaller, (3, 224, 224)) == 483_149_824


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        step = outputs // inputs
        self.a = conv(inputs, outputs, bias=False, stride=step)
        self.b = conv(outputs, outputs, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for _ in range(2)])
        self.short = nn.Sequential()
        if step > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=step, bias=False)
            self.short = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[1](self.b(self.norms[0](self.a(x)).relu()))
        return (y + self.short(x)).relu()


def cifar_resnet(blocks: int) -> nn.Module:
    widths = [(i, o) for o in (16, 32, 64) for i in [max(16, o // 2), *[o] * (blocks - 1)]]
    stem = nn.Sequential(conv(3, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(stem, *(Block(i, o) for i, o in widths), tail(64, 10))


@pytest.mark.parametrize(
    ("blocks", "weights", "everything", "multiplications"),
    [(3, 270_896, 272_474, 40_813_184), (9, 851_504, 855_770, 125_747_840)],
)
def test_resnets_for_cifar(blocks, weights, everything, multiplications) -> None:
    model = cifar_resnet(blocks)
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == weights
    assert parameters(model) == everything
    assert macs(model, (3, 32, 32)) == multiplications
    plan = secateur.plan_removal(model, torch.zeros(1, 3, 32, 32), 0.5, round_to=1)
    # Half of all widths: the stem's weights and the head's halve, others go down to a quarter.
    stem, head = 27 * 16, 64 * 10
    smaller = secateur.remove(model, plan)
    assert sum(p.numel() for p in smaller.parameters() if p.ndim > 1) == (
        (weights - stem - head) // 4 + (stem + head) // 2
    )
