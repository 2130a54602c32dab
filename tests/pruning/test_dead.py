from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.benchmarking.cost import parameters
from secateur.pruning.dead import plan_dead
from secateur.pruning.masks import weight_masks
from secateur.pruning.plan import Fold, Plan
from secateur.pruning.surgery import apply_masks, remove


def dense(*weights: list[list[float]], biases: list[list[float]]) -> nn.Sequential:
    """Linear layers with ReLU and dropout between; an empty bias is none."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(len(weight[0]), len(weight), bias=bool(bias))
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
            if bias:
                layer.bias.copy_(torch.tensor(bias))
        layers += [layer, nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers[:-2]).eval()


def without_dead(network: nn.Module, *shape: int) -> tuple[nn.Module, Plan]:
    """The smaller network, after seeing that it computes what the large one does."""
    before = copy.deepcopy(network.state_dict())
    plan = plan_dead(network, torch.zeros(1, *shape))
    smaller = remove(network, plan)
    images = torch.randn(5, *shape)
    expected = network(images)
    torch.testing.assert_close(smaller(images), expected)
    torch.testing.assert_close(apply_masks(network, plan)(images), expected)
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
    return smaller, plan


def kept(plan: Plan) -> dict[tuple[str, int], list[int]]:
    return {(cut.module, cut.axis): list(cut.keep) for cut in plan.cuts}


def test_the_unheard_go_and_constants_move_to_the_bias() -> None:
    # Of four neurons the second hears nothing and says relu(2), the third relu(-3); nobody
    # hears the fourth.
    network = dense(
        [[1, 1], [0, 0], [0, 0], [1, 0]], [[1, 10, 100, 0]], biases=[[0, 2, -3, 5], [0.5]]
    )
    smaller, plan = without_dead(network, 2)
    assert plan.folds == (Fold(module="3", inputs=(1,), values=(2.0,), into="3.bias"),)
    assert kept(plan) == {("0", 0): [0], ("3", 1): [0]}
    assert smaller[3].bias.item() == 0.5 + 10 * 2
    assert parameters(smaller) == (2 + 1) + (1 + 1)


def test_death_spreads_forward_and_back() -> None:
    # 0.1 is constant, so 3.1, which hears it alone, is constant too; 3.2 is unheard, so is 0.2.
    network = dense(
        [[1, 0], [0, 0], [0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 7, 0]],
        biases=[[0, 2, 0], [0, 1, 0], [0]],
    )
    smaller, _ = without_dead(network, 2)
    assert parameters(smaller) == (2 + 1) + (1 + 1) + (1 + 1)
    assert smaller[6].bias.item() == 7 * (2 + 1)


def test_a_layer_never_empties() -> None:
    unheard = dense([[1, 0], [0, 1]], [[0, 0]], biases=[[1, 1], [3]])
    constant = dense([[0, 0], [0, 0]], [[1, 1]], biases=[[1, 1], [3]])
    both = dense([[0, 0], [1, 0]], [[0, 1], [0, 1]], [[0, 0]], biases=[[1, 1], [1, 1], [3]])
    for network in (unheard, constant, both):
        smaller, _ = without_dead(network, 2)
        assert smaller[0].out_features == 1


def test_a_constant_without_a_home_stays() -> None:
    nowhere = dense([[1, 0], [0, 0]], [[1, 1]], biases=[[0, 2], []])
    assert without_dead(nowhere, 2)[1] == Plan()
    silent = dense([[1, 0], [0, 0]], [[1, 1]], biases=[[], []])  # without bias it is zero
    smaller, plan = without_dead(silent, 2)
    assert plan.folds == ()
    assert smaller[0].out_features == 1


class Images(nn.Module):
    """Two convolutions and a head; ``zero`` names the filters of the first that are zero."""

    def __init__(self, kernel: int, padding: int, bias: bool, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 3, kernel, padding=padding, bias=bias)
        self.after = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.head = nn.Linear(3, 2)
        for layer in (self.norm, self.after):
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1)
                nn.init.uniform_(layer.bias, 0.5, 1)  # a dead filter says something after it
                nn.init.normal_(layer.running_mean)
        nn.init.constant_(self.first.weight[2], 0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.after(self.second(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("kernel", "padding", "bias", "norm", "into"),
    [
        (1, 0, True, False, "second.bias"),
        (3, 0, True, True, "second.bias"),
        (1, 0, False, True, "after.running_mean"),
        (3, 1, True, False, None),  # the border sees zeros, not the constant
        (1, 0, False, False, None),
    ],
)
def test_a_dead_filter_goes_where_its_constant_finds_a_home(
    kernel: int, padding: int, bias: bool, norm: bool, into: str | None
) -> None:
    torch.manual_seed(0)
    network = Images(kernel, padding, bias, norm)
    smaller, plan = without_dead(network, 1, 6, 6)
    assert [fold.into for fold in plan.folds] == ([into] if into else [])
    assert smaller.first.out_channels == (3 if into else 4)


def test_a_dead_filter_that_says_zero_goes_through_padding_too() -> None:
    torch.manual_seed(0)
    network = Images(3, 1, True, False)
    nn.init.constant_(network.norm.bias, -9)
    with torch.no_grad():
        network.norm.bias[[0, 1, 3]] = 1
    smaller, plan = without_dead(network, 1, 6, 6)
    assert plan.folds == ()
    assert smaller.first.out_channels == 3


class Gated(Images):
    """What a gate that sees the image multiplies is no constant."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x))) * x.mean((1, 2, 3), keepdim=True).sigmoid()
        return self.head(torch.relu(self.after(self.second(x))).mean((2, 3)))


def test_a_gated_constant_stays() -> None:
    torch.manual_seed(0)
    assert without_dead(Gated(1, 0, True, False), 1, 6, 6)[1] == Plan()


class Shortcut(Images):
    """The reader's output also goes around its batch-norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.norm(self.first(x))))
        return self.head(torch.relu(self.after(x) + x).mean((2, 3)))


def test_a_running_mean_that_others_read_past_takes_nothing_up() -> None:
    torch.manual_seed(0)
    assert without_dead(Shortcut(1, 0, False, True), 1, 6, 6)[1] == Plan()


def test_sparse_weights_leave_dead_neurons_behind() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    network = network.append(nn.Linear(32, 4)).eval()
    weight_masks(network, ["0", "2", "4"], 0.9).apply_(network)
    smaller, plan = without_dead(network, 8)
    assert plan.folds
    assert smaller[0].out_features < 64
    assert smaller[2].out_features < 32


def test_a_group_that_must_shrink_evenly_loses_dead_channels_evenly() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.fc = nn.Conv2d(1, 8, 1), nn.Linear(8, 2)
            self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.make(x).relu().chunk(2, 1)
            x = torch.cat([self.one(one), self.two(two)], 1)
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    network = Halves().eval()
    with torch.no_grad():
        network.one.weight[:, [0, 2]] = 0
        network.two.weight[:, 3] = 0
    smaller, plan = without_dead(network, 1, 4, 4)
    assert smaller.make.out_channels == 6  # one of the two must stay with the other half's three
    assert len(set(kept(plan)["make", 0]) & {0, 2}) == 1
    assert 7 not in kept(plan)["make", 0]
