from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from secateur.cost import parameters
from secateur.errors import NetworkError
from secateur.networks import build_network
from secateur.pruning.channels import Prunable, find_prunable
from secateur.pruning.masks import Masks, make_masks
from secateur.pruning.surgery import Cut, Fold, Plan, plan_removal, rebuild, remove
from secateur.recipe import Network

SIDES = {"mobilenet_v2": 28, "shufflenet_v2_x1_0": 28, "alexnet": 64}


@cache
def lively(name: str) -> tuple[nn.Module, Prunable]:
    """A network whose output depends on its input, with random batch-norms; never changed."""
    side = SIDES[name]
    config = Network(name=name, resolution=side)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(config, 1, 10)
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.data.mul_(2.5)  # torch's own draw lets AlexNet's signal die out
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # sees the images below, and them alone
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, 0, 0.3)
        if name != "alexnet":
            with torch.no_grad():
                network.train()(torch.randn(16, 1, side, side))
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.mul_(torch.empty_like(layer.running_var).uniform_(0.7, 1.3))
                layer.running_mean.add_(torch.randn_like(layer.running_mean), alpha=0.1)
    return network.eval(), find_prunable(network, torch.zeros(1, 1, side, side))


def batch(name: str, dtype: torch.dtype = torch.float32, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    side = SIDES[name]
    return torch.randn(count, 1, side, side, generator=generator, dtype=torch.float64).to(dtype)


def assert_same(masked: nn.Module, removed: nn.Module, images: Tensor, within: float) -> None:
    with torch.no_grad():
        expected, found = masked(images), removed(images)
    scale = expected.abs().max()
    assert expected.std(0).max() > 1e-3 * scale  # else equality would say nothing
    assert (expected - found).abs().max() <= within * scale


def pruned(name: str, fraction: float, round_to: int = 1) -> tuple[nn.Module, Plan]:
    network, prunable = lively(name)
    network = copy.deepcopy(network)
    if name == "alexnet":  # smaller than what goes: neurons that hear nothing, and unheard ones
        with torch.no_grad():
            network.get_parameter("classifier.1.weight")[5:300] *= 1e-6
            network.get_parameter("classifier.4.weight")[100:200] *= 1e-6
            network.get_parameter("classifier.4.weight")[:, 1000:1500] *= 1e-6
            network.get_parameter("classifier.6.weight")[:, 3000:3100] *= 1e-6
    masks = make_masks(network, prunable, fraction, round_to)
    masks.apply_(network)
    return network, plan_removal(network, prunable, masks)


@pytest.mark.parametrize(
    ("name", "fraction", "round_to"),
    [
        ("mobilenet_v2", 0.5, 8),
        ("mobilenet_v2", 0.7, 1),
        ("shufflenet_v2_x1_0", 0.5, 8),
        ("shufflenet_v2_x1_0", 0.35, 1),
        ("alexnet", 0.6, 8),
    ],
)
def test_masked_is_removed(name: str, fraction: float, round_to: int) -> None:
    network, plan = pruned(name, fraction, round_to)
    smaller = remove(network, plan)
    assert parameters(smaller) < 0.8 * parameters(network)
    assert_same(network, smaller, batch(name), 1e-4)
    if name == "alexnet":
        dropped = [len(fold.neurons) for fold in plan.folds]
        assert dropped == [295, 100]
        outputs = {cut.module: len(cut.keep) for cut in plan.cuts if cut.axis == 0}
        assert outputs["classifier.1"] == 4096 - 295 - 500
        heard = (network.get_parameter("classifier.6.weight") != 0).any(0)
        heard[100:200] = False  # constant, and folded
        assert outputs["classifier.4"] == heard.sum() <= 4096 - 200
    network.double()
    assert_same(network, remove(network, plan), batch(name, torch.float64), 1e-9)


def test_spec_plan_and_weights_bring_a_network_back() -> None:
    name = "shufflenet_v2_x1_0"
    network, plan = pruned(name, 0.5)
    smaller = remove(network, plan)
    config = Network(name=name, resolution=28)  # type: ignore[arg-type]
    again = rebuild(build_network(config, 1, 10, seed=7), Plan.from_json(plan.to_json())).eval()
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(batch(name)), smaller(batch(name)))


def test_the_smaller_network_trains_and_the_larger_is_left_alone() -> None:
    name = "mobilenet_v2"
    network, plan = pruned(name, 0.5)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    smaller = remove(network, plan).train()
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.01)
    images, labels = batch(name, count=4), torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(smaller(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in smaller.parameters())
    assert all(torch.equal(before[key], now) for key, now in network.state_dict().items())


def test_what_is_kept_keeps_its_order() -> None:
    network, plan = pruned("mobilenet_v2", 0.5)
    smaller = remove(network, plan)
    cut = next(c for c in plan.cuts if c.module == "features.0.0")
    assert cut.axis == 0
    assert cut.size == 32
    assert len(cut.keep) == 16
    old, new = network.get_parameter("features.0.0.weight"), smaller.features[0][0].weight
    assert torch.equal(old[list(cut.keep)], new)
    depthwise = smaller.features[1].conv[0][0]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (16, 16, 16)


# ---- in one's head


def small_convolutional() -> tuple[nn.Module, Prunable]:
    """Sums over 2x2 images of x, 2x, 3x, of which x goes: 5 times the sum of all pixels."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1, bias=False))
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 2, 3]).view(3, 1, 1, 1))
        network[0].bias.zero_()
        network[3].weight.fill_(1)
    return network.eval(), find_prunable(network, torch.zeros(1, 1, 2, 2))


def test_a_channel_takes_its_flattened_map_along() -> None:
    network, prunable = small_convolutional()
    masks = make_masks(network, prunable, {"0": 0.4})
    masks.apply_(network)
    plan = plan_removal(network, prunable, masks)
    assert plan.cuts == (
        Cut(module="0", axis=0, size=3, keep=(1, 2)),
        Cut(module="3", axis=1, size=12, keep=(4, 5, 6, 7, 8, 9, 10, 11)),
    )
    smaller = remove(network, plan)
    assert parameters(smaller) == 4 + 8
    assert smaller(torch.tensor([[[[1.0, 2], [3, 4]]]])).item() == 5 * 10


def chain(*weights: list[list[float]], biases: list[list[float]]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(len(weight[0]), len(weight), bias=bool(bias))
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight))
            if bias:
                layer.bias.copy_(torch.tensor(bias))
        layers += [layer, nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers[:-2]).eval()


def shrunk(network: nn.Sequential) -> tuple[nn.Module, Plan]:
    prunable = find_prunable(network, torch.zeros(1, network[0].in_features))
    plan = plan_removal(network, prunable, Masks({}))
    return remove(network, plan), plan


def test_dead_neurons_go_and_constants_are_folded() -> None:
    # Of four neurons the second hears nothing and says relu(2), the third relu(-3); nobody
    # hears the fourth.
    network = chain(
        [[1, 1], [0, 0], [0, 0], [1, 0]], [[1, 10, 100, 0]], biases=[[0, 2, -3, 5], [0.5]]
    )
    smaller, plan = shrunk(network)
    assert plan.folds == (Fold(source="0", target="3", rectified=True, neurons=(1, 2)),)
    assert plan.cuts == (
        Cut(module="0", axis=0, size=4, keep=(0,)),
        Cut(module="3", axis=1, size=4, keep=(0,)),
    )
    assert smaller[3].bias.item() == 0.5 + 10 * 2
    assert network[3].bias.item() == 0.5
    for x in ([[1.0, 2.0]], [[-4.0, 1.0]]):
        assert smaller(torch.tensor(x)) == network(torch.tensor(x))


def test_death_spreads_forward_and_back() -> None:
    # 0.1 is constant, so 3.1, which hears it alone, is constant too; 3.2 is unheard, so is 0.2.
    network = chain(
        [[1, 0], [0, 0], [0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 7, 0]],
        biases=[[0, 2, 0], [0, 1, 0], [0]],
    )
    smaller, plan = shrunk(network)
    assert [(fold.source, fold.neurons) for fold in plan.folds] == [("0", (1,)), ("3", (1,))]
    assert parameters(smaller) == (2 + 1) + (1 + 1) + (1 + 1)
    assert smaller[6].bias.item() == 7 * (2 + 1)
    x = torch.tensor([[3.0, 4.0], [-1.0, 2.0]])
    assert torch.equal(smaller(x), network(x))
    assert network(x).flatten().tolist() == [24, 21]


def test_a_layer_never_empties() -> None:
    unheard = chain([[1, 0], [0, 1]], [[0, 0]], biases=[[1, 1], [3]])
    constant = chain([[0, 0], [0, 0]], [[1, 1]], biases=[[1, 1], [3]])
    both = chain([[0, 0], [1, 0]], [[0, 1], [0, 1]], [[0, 0]], biases=[[1, 1], [1, 1], [3]])
    for network in (unheard, constant, both):
        smaller, _ = shrunk(network)
        assert smaller[0].out_features == 1
        x = torch.randn(4, 2)
        assert torch.equal(smaller(x), network(x))


def test_a_constant_without_a_bias_to_go_to_stays() -> None:
    network = chain([[1, 0], [0, 0]], [[1, 1]], biases=[[0, 2], []])
    smaller, plan = shrunk(network)
    assert plan == Plan()
    assert smaller(torch.ones(1, 2)).item() == 3
    silent = chain([[1, 0], [0, 0]], [[1, 1]], biases=[[], []])  # without bias it is zero
    smaller, plan = shrunk(silent)
    assert plan.folds == ()
    assert smaller[0].out_features == 1


def test_a_neuron_that_hears_removed_channels_only_is_dead() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)),
    ).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 2]).view(2, 1, 1, 1))
        network[3].weight.copy_(torch.tensor([[1.0, 0], [0, 1]]))
        network[3].bias.fill_(4)
    prunable = find_prunable(network, torch.zeros(1, 1, 2, 2))
    masks = make_masks(network, prunable, {"0": 0.5})
    masks.apply_(network)
    plan = plan_removal(network, prunable, masks)
    assert plan.folds == (Fold(source="3", target="5", rectified=True, neurons=(0,)),)
    x = torch.randn(5, 1, 2, 2)
    torch.testing.assert_close(remove(network, plan)(x), network(x))


# ---- what does not fit


def test_masks_must_be_in_force() -> None:
    network, prunable = small_convolutional()
    masks = make_masks(network, prunable, 0.4)
    with pytest.raises(NetworkError, match="not in force"):
        plan_removal(network, prunable, masks)


def test_a_group_cannot_be_masked_whole() -> None:
    network, prunable = small_convolutional()
    none = torch.zeros(3, dtype=torch.bool)
    masks = Masks({"0.weight": none.view(3, 1, 1, 1), "0.bias": none})
    masks.apply_(network)
    with pytest.raises(NetworkError, match=r"nothing would be left of a layer \(0\)"):
        plan_removal(network, prunable, masks)


def test_a_channel_stays_unless_all_its_parameters_are_masked() -> None:
    network, prunable = small_convolutional()
    masks = Masks({"0.weight": torch.tensor([False, True, True]).view(3, 1, 1, 1)})
    masks.apply_(network)
    assert plan_removal(network, prunable, masks) == Plan()  # its bias still speaks


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut(module="9", axis=0, size=3, keep=(0,)), r"\(9\): expected a layer, found none"),
        (Cut(module="0", axis=0, size=4, keep=(0,)), r"\(0\): expected 4 outputs, found 3"),
        (Cut(module="3", axis=1, size=8, keep=(0,)), r"\(3\): expected 8 inputs, found 12"),
        (Cut(module="0", axis=0, size=3, keep=()), r"\(0\): expected rising indices below 3"),
        (Cut(module="0", axis=0, size=3, keep=(0, 3)), r"rising indices below 3, found \[0, 3\]"),
        (Cut(module="0", axis=0, size=3, keep=(1, 0)), r"rising indices below 3, found \[1, 0\]"),
        (Cut(module="1", axis=0, size=3, keep=(0,)), r"\(1\): .* found ReLU on axis 0"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(cut: Cut, message: str) -> None:
    network, _ = small_convolutional()
    for act in (remove, rebuild):
        with pytest.raises(NetworkError, match=message):
            act(network, Plan(cuts=(cut,)))
    assert network(torch.ones(1, 1, 2, 2)).item() == 24  # left alone


def test_a_fold_that_does_not_fit_is_refused() -> None:
    network, _ = small_convolutional()
    fold = Fold(source="0", target="3", rectified=True, neurons=(0,))
    with pytest.raises(NetworkError, match=r"\(0\): expected a Linear, found Conv2d"):
        remove(network, Plan(folds=(fold,)))


def test_plans_survive_json_and_nothing_else_is_taken_for_one() -> None:
    cut = Cut(module="a", axis=1, size=3, keep=(0, 2))
    plan = Plan(cuts=(cut,), folds=(Fold(source="a", target="b", rectified=True, neurons=(1,)),))
    assert Plan.from_json(plan.to_json()) == plan
    for text in ("{", '{"cuts": [{"module": "a"}]}', '{"version": 2}', '{"extra": 1}'):
        with pytest.raises(NetworkError, match="not a removal plan"):
            Plan.from_json(text)
