from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.tiny_networks import mobilenet, shufflenet
from secateur.benchmarking.cost import macs
from secateur.errors import NetworkError
from secateur.pruning.plan import Plan
from secateur.pruning.planner import plan_channels, start_of
from secateur.pruning.surgery import rebuild, remove
from secateur.recipe import Prune

EXAMPLE = torch.zeros(1, 3, 28, 28)


def convolutions(*widths: int) -> nn.Sequential:
    """Convolutions in a row; filter i of each is i + 1 everywhere."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layer = nn.Conv2d(before, after, 1)
        with torch.no_grad():
            layer.weight.copy_(
                torch.arange(1.0, after + 1).view(-1, 1, 1, 1).expand_as(layer.weight)
            )
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def widths(network: nn.Module) -> list[int]:
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def in_rounds(network: nn.Module, config: Prune, *fractions: float) -> tuple[nn.Module, Plan]:
    start, whole = start_of(network, EXAMPLE, config), Plan()
    for fraction in fractions:
        plan, _ = plan_channels(network, EXAMPLE, config, fraction, start=start)
        network, whole = remove(network, plan), whole.then(plan)
    return network, whole


def test_fractions_are_of_what_was_there_at_the_start() -> None:
    config = Prune(epochs=1, round_to=1)
    network, _ = in_rounds(convolutions(10, 20, 5), config, 0.3, 0.5)
    assert widths(network) == [5, 10, 5]
    assert network[0].weight[:, 0, 0, 0].tolist() == [6, 7, 8, 9, 10]  # the largest, in order


def test_rounding_up_in_one_round_is_made_good_in_the_next() -> None:
    # 24 filters less 30 % are 16.8, that is 24 in eights; less 50 % of the 24, not of what is left.
    config = Prune(epochs=1, round_to=8)
    first, _ = in_rounds(convolutions(24, 5), config, 0.3)
    assert widths(first) == [24, 5]
    assert widths(in_rounds(convolutions(24, 5), config, 0.3, 0.5)[0]) == [16, 5]


def test_global_rounds_add_up() -> None:
    config = Prune(epochs=1, round_to=1, scope="global", importance="l1")
    network, _ = in_rounds(convolutions(10, 30, 5), config, 0.25, 0.5)
    assert sum(widths(network)[:2]) == 20


def test_plans_of_rounds_make_one_for_stored_weights() -> None:
    torch.manual_seed(0)
    config = Prune(epochs=1, round_to=1)
    network, whole = in_rounds(shufflenet(), config, 0.2, 0.4, 0.6)
    again = rebuild(shufflenet(), Plan.from_json(whole.to_json()))
    again.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(again.eval()(images), network.eval()(images))


def test_an_objective_is_of_the_cost_at_the_start() -> None:
    config = Prune(epochs=1, round_to=1, objective="macs", target=0.4)
    before = macs(mobilenet(), (3, 28, 28))
    network, _ = in_rounds(mobilenet(), config, 0.3, 0.6)
    assert 0.35 < macs(network, (3, 28, 28)) / before <= 0.4


def test_hidden_linear_layers_lose_neurons_only_where_asked_to() -> None:
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)),
    )
    weights = in_rounds(network, Prune(epochs=1, round_to=1), 0.5)[0]
    assert (weights[0].out_channels, weights[3].out_features) == (4, 6)
    neurons = in_rounds(network, Prune(epochs=1, round_to=1, linear="neurons"), 0.5)[0]
    assert (neurons[0].out_channels, neurons[3].out_features) == (4, 3)


def test_sensitivity_takes_more_where_less_is_lost() -> None:
    network = convolutions(20, 20, 5)
    config = Prune(epochs=1, round_to=1, scope="sensitivity")
    curves = {"0": [(0.5, 0.01), (0.9, 0.02)], "2": [(0.5, 0.2), (0.9, 0.4)]}
    start = start_of(network, EXAMPLE, config)
    plan, _ = plan_channels(network, EXAMPLE, config, 0.5, start=start, curves=curves)
    assert widths(remove(network, plan)) == [2, 18, 5]
    with pytest.raises(NetworkError, match=r"no sensitivity curve \(2\)"):
        plan_channels(network, EXAMPLE, config, 0.5, start=start, curves={"0": curves["0"]})


def test_taylor_wants_gradients() -> None:
    network = convolutions(4, 5)
    config = Prune(epochs=1, round_to=1, importance="taylor")
    start = start_of(network, EXAMPLE, config)
    with pytest.raises(NetworkError, match=r"no gradients to judge by \(0\.weight\)"):
        plan_channels(network, EXAMPLE, config, 0.5, start=start)
    network(torch.ones(1, 3, 28, 28)).sum().backward()
    with torch.no_grad():
        network[0].weight.grad[[1, 3]] = 0  # type: ignore[index]
    plan, _ = plan_channels(network, EXAMPLE, config, 0.5, start=start)
    assert remove(network, plan)[0].weight[:, 0, 0, 0].tolist() == [1, 3]
