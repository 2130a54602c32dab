from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from helpers.odd_networks import Net, conv
from secateur.errors import NetworkError
from secateur.pruning.find import find_prunable
from secateur.pruning.importance import channel_importance, weight_importance


def small() -> nn.Sequential:
    """Filters (3, -1) and depthwise ones (2, 2, 2, 2) and zero; biases do not count."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 2, groups=2), nn.BatchNorm2d(2)),
        nn.Conv2d(2, 1, 1),
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, -1.0]).view(2, 1, 1, 1))
        network[2].weight.copy_(torch.tensor([2.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2))
        network[0].bias.fill_(100)
        network[1].weight.copy_(torch.tensor([1.0, -4]))
        network[3].weight.copy_(torch.tensor([2.0, 8]))
    return network


def scores(network: nn.Module, importance: str, shape=(1, 4, 4), **more) -> dict[str, list[float]]:
    prunable = find_prunable(network, torch.zeros(1, *shape))
    found = channel_importance(network, prunable, importance, **more)  # type: ignore[arg-type]
    assert all(each.dtype == np.float64 for each in found.values())
    return {name: each.tolist() for name, each in found.items()}


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ("l1", [3 + 4 * 2, 1]),
        ("l2", [5, 1]),  # 3^2 + 4 * 2^2 = 25
        ("batch_norm", [1.5, 6]),  # the mean of |1| and |2|, of |-4| and |8|
    ],
)
def test_all_that_makes_a_channel_counts(importance: str, expected: list[float]) -> None:
    assert scores(small(), importance)["0"] == expected


def test_taylor_is_the_squared_change_of_the_loss_of_each_filter() -> None:
    network = small()
    for index in (0, 2):
        network[index].weight.grad = torch.full_like(network[index].weight, 0.5)
    # (0.5 * 3)^2 + (0.5 * 4 * 2)^2, and (0.5 * -1)^2 + 0.
    assert scores(network, "taylor")["0"] == [2.25 + 16, 0.25]
    network[2].weight.grad = None  # as of a frozen layer: the others decide
    assert scores(network, "taylor")["0"] == [2.25, 0.25]
    network[0].weight.grad = None
    with pytest.raises(NetworkError, match=r"no gradients to judge by \(0.weight\); run the loss"):
        scores(network, "taylor")


def test_fpgm_is_the_distance_to_all_other_filters() -> None:
    network = nn.Sequential(conv(1, 3, 1), conv(3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([0.0, 1, 4]).view(3, 1, 1, 1))
    assert scores(network, "fpgm")["0"] == [5, 4, 7]


def test_lamp_is_a_square_over_all_that_are_as_large() -> None:
    network = nn.Sequential(conv(1, 3, 1), conv(3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, -2, 3]).view(3, 1, 1, 1))
    assert scores(network, "lamp")["0"] == pytest.approx([1 / 14, 4 / 13, 1])


def test_both_sides_of_an_addition_count() -> None:
    network = Net(lambda n, x: n.c(n.a(x) + n.b(x)), a=conv(1, 2, 1), b=conv(1, 2, 1), c=conv(2, 1))
    with torch.no_grad():
        network.a.weight.copy_(torch.tensor([3.0, 0]).view(2, 1, 1, 1))
        network.b.weight.copy_(torch.tensor([4.0, 2]).view(2, 1, 1, 1))
    assert scores(network, "l2") == {"a": [5, 2]}


def test_channels_of_a_group_count_together_and_linear_and_transposed_layers_too() -> None:
    network = nn.Sequential(
        *(conv(1, 4, 1), nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 2, 1), nn.Flatten()),
        *(nn.Linear(32, 2), nn.Linear(2, 1)),
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1))
        network[2].weight.copy_(torch.tensor([[1.0, 10]] * 4).view(4, 2, 1, 1))
        network[4].weight.copy_(torch.tensor([[1.0] * 32, [2.0] * 32]))
    assert scores(network, "l1") == {"0": [3, 7], "2": [4, 40], "4": [32, 64]}


def test_a_group_without_batch_norm_stays_whole() -> None:
    found = scores(nn.Sequential(conv(1, 2), nn.ReLU(), conv(2, 1)), "batch_norm")
    assert found["0"] == [np.inf, np.inf]


def test_random_scores_follow_the_seed() -> None:
    first, same, other = (scores(small(), "random", seed=seed)["0"] for seed in (0, 0, 1))
    assert first == same != other
    assert all(0 <= score < 1 for score in first)


def test_a_diverged_network_and_an_unknown_importance_are_refused() -> None:
    network = small()
    nn.init.constant_(network[2].weight, float("nan"))
    with pytest.raises(NetworkError, match=r"weights are not finite numbers \(0\): found nan"):
        scores(network, "l2")
    with pytest.raises(ValueError, match=r"importance must be one of .*, found 'luck'"):
        scores(network, "luck")


def test_a_weight_counts_by_magnitude() -> None:
    weight = nn.Parameter(torch.tensor([[-2.0, 0.5]]))
    assert weight_importance(weight).tolist() == [[2.0, 0.5]]
    assert not weight_importance(weight).requires_grad
