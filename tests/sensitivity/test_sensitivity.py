from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from secateur.data import Images, Preparation
from secateur.errors import SecateurError
from secateur.pruning.channels import Prunable
from secateur.pruning.find import find_prunable
from secateur.pruning.masks import Masks
from secateur.sensitivity import engine as engines
from secateur.sensitivity.engine import EagerEngine
from secateur.sensitivity.scan import ScanPoint, choose_threshold, scan_layers, scan_network
from secateur.statistics import Interval, paired_drop

PREPARE = Preparation((0.5,), (0.5,), 2)
IMAGES = Images(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), torch.zeros(100).long(), ("a",))


def toy() -> tuple[nn.Module, Prunable]:
    """Ten one-pixel filters of weights 1 .. 10, then ten weights 1 .. 10; statistics included."""
    network = nn.Sequential(
        nn.Conv2d(1, 10, 1), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).append(nn.Linear(10, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.arange(1.0, 11).view(10, 1, 1, 1))
        network[4].weight.copy_(torch.arange(1.0, 11).view(1, 10))
        nn.init.normal_(network[1].running_mean)
    return network.eval(), find_prunable(network, torch.zeros(2, 1, 2, 2))


def count(network: nn.Module) -> npt.NDArray[np.bool_]:
    """Right on as many of 100 images as ten times the filters and weights left allow."""
    filters = int(network.get_parameter("0.weight").count_nonzero())
    weights = int(network.get_parameter("4.weight").count_nonzero())
    return np.arange(100) < 10 * min(filters, weights)


@pytest.fixture
def evaluates(monkeypatch):  # type: ignore[no-untyped-def]
    """Scans with the eager engine, which evaluates with the function that this is given."""

    def use(evaluate=count, scan=scan_layers, fractions=(0.2,), progress=None):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(engines, "correctness", lambda network, *_: evaluate(network))

        def run(network: nn.Module, prunable: Prunable) -> list[ScanPoint]:
            engine = EagerEngine(network)
            return scan(
                network, prunable, ["4"], fractions, IMAGES, PREPARE, progress, engine=engine
            )

        return run

    return use


def test_network_scan_starts_unpruned_and_prunes_all_layers_alike(evaluates) -> None:  # type: ignore[no-untyped-def]
    seen: list[tuple[int, int]] = []
    done: list[int] = []

    def watch(model: nn.Module) -> npt.NDArray[np.bool_]:
        weights = int(model.get_parameter("4.weight").count_nonzero())
        seen.append((int(model.get_parameter("0.weight").count_nonzero()), weights))
        return np.arange(100) < 10 * seen[-1][0]

    points = evaluates(watch, scan_network, [0.3, 0.1, 0.9], done.append)(*toy())
    # The same weights go with their channels, and no others: both are in rising order.
    assert seen == [(10, 10), (7, 7), (9, 9), (1, 1)]  # levels do not accumulate
    assert [(p.layer, p.fraction, p.correct, p.n) for p in points] == [
        ("network", 0.0, 100, 100),
        ("network", 0.3, 70, 100),
        ("network", 0.1, 90, 100),
        ("network", 0.9, 10, 100),
    ]
    assert [p.effective_sparsity for p in points] == pytest.approx([0, 0.3, 0.1, 0.9])
    assert points[1].accuracy.value == 0.7
    assert points[1].drop == paired_drop(np.ones(100, bool), np.arange(100) < 70)
    assert done == [1] * 4


def test_layer_scan_prunes_one_layer_at_a_time(evaluates) -> None:  # type: ignore[no-untyped-def]
    seen: list[tuple[int, int]] = []

    def watch(model: nn.Module) -> npt.NDArray[np.bool_]:
        bias = int(model.get_parameter("0.bias").count_nonzero())
        seen.append((bias, int(model.get_parameter("4.weight").count_nonzero())))
        return count(model)

    points = evaluates(watch, fractions=[0.5, 0.2])(*toy())
    # Masked channels are masked where they are read, too.
    assert seen == [(10, 10), (5, 5), (8, 8), (10, 5), (10, 8)]
    assert [(p.layer, p.fraction) for p in points] == [
        *(("0", 0.5), ("0", 0.2), ("4", 0.5), ("4", 0.2))
    ]
    assert [p.effective_sparsity for p in points] == pytest.approx([0.5, 0.2, 0.5, 0.2])
    assert points[0].drop.value == 0.5


def test_exactly_the_smallest_go_ties_by_index_and_one_stays(evaluates) -> None:  # type: ignore[no-untyped-def]
    network, prunable = toy()
    with torch.no_grad():
        network[0].weight.fill_(1)
    seen: list[list[int]] = []

    def watch(model: nn.Module) -> npt.NDArray[np.bool_]:
        seen.append(model.get_parameter("0.weight").flatten().nonzero().flatten().tolist())
        return count(model)

    evaluates(watch, fractions=[0.29, 0.99])(network, prunable)
    assert seen[1:3] == [[2, 3, 4, 5, 6, 7, 8, 9], [9]]


def test_linear_layers_that_lose_weights_do_not_lose_neurons_too() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    prunable = find_prunable(network, torch.zeros(1, 1, 2, 2))
    assert [group.name for group in prunable.groups] == ["1"]
    points = scan_layers(network, prunable, ["1", "3"], [0.5], IMAGES, PREPARE)
    assert [(p.layer, p.effective_sparsity) for p in points] == [("1", 0.5), ("3", 0.5)]
    points = scan_layers(network, prunable, [], [0.5], IMAGES, PREPARE)
    assert [(p.layer, p.effective_sparsity) for p in points] == [("1", 0.5)]


@pytest.mark.parametrize("scan", [scan_network, scan_layers])
def test_a_scan_leaves_the_network_bit_for_bit(evaluates, scan) -> None:  # type: ignore[no-untyped-def]
    network, prunable = toy()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def careless(model: nn.Module) -> npt.NDArray[np.bool_]:
        model.train()(torch.randn(4, 1, 2, 2))  # moves batch-norm's running statistics
        return count(model)

    evaluates(careless, scan, [0.2, 0.4])(network, prunable)
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())

    def failing(model: nn.Module) -> npt.NDArray[np.bool_]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluates(failing, scan)(network, prunable)
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_each_level_sees_pristine_statistics(evaluates) -> None:  # type: ignore[no-untyped-def]
    seen: list[float] = []

    def careless(model: nn.Module) -> npt.NDArray[np.bool_]:
        seen.append(float(model.get_buffer("1.running_mean").sum()))
        model.train()(torch.randn(4, 1, 2, 2))
        return count(model)

    evaluates(careless, scan_network, [0.2, 0.4])(*toy())
    assert seen == [seen[0]] * 3


def test_masks_silently_not_applied_are_an_error(evaluates, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(Masks, "apply_", lambda self, model: None)
    with pytest.raises(SecateurError, match=r"not in force.*scan of network at 0.2"):
        evaluates(scan=scan_network)(*toy())


def test_masks_lost_during_evaluation_are_an_error(evaluates) -> None:  # type: ignore[no-untyped-def]
    def reloading(model: nn.Module) -> npt.NDArray[np.bool_]:
        with torch.no_grad():
            model.get_parameter("0.weight").fill_(1)
        return count(model)

    with pytest.raises(SecateurError, match=r"not in force.*scan of 0 at 0.5"):
        evaluates(reloading, fractions=[0.5])(*toy())


def point(fraction: float, high: float, layer: str = "network") -> ScanPoint:
    return ScanPoint(
        layer, fraction, fraction, 9, 10, Interval(0.9, 0.8, 1), Interval(0, -0.1, high)
    )


@pytest.mark.parametrize(
    ("highs", "expected"),
    [
        ([0.005, 0.01, 0.02], 0.2),  # exactly the tolerance is within it
        ([0.005, 0.02, 0.005], 0.1),  # a curve that comes back is not trusted
        ([0.02, 0.0, 0.0], 0.0),
        ([0.0, 0.0, 0.0], 0.3),
    ],
)
def test_threshold_is_where_every_smaller_fraction_holds(
    highs: list[float], expected: float
) -> None:
    points = [point(0.1 * (i + 1), high) for i, high in enumerate(highs)]
    assert choose_threshold(points[::-1], 1.0) == pytest.approx(expected)


def test_threshold_ignores_the_unpruned_point_and_refuses_a_mixture() -> None:
    assert choose_threshold([point(0, 0.3), point(0.1, 0)], 1.0) == 0.1
    assert choose_threshold([], 1.0) == 0.0
    with pytest.raises(ValueError, match="more than one layer"):
        choose_threshold([point(0.1, 0), point(0.1, 0, "fc")], 1.0)


def test_points_survive_json() -> None:
    network, prunable = toy()
    for found in scan_network(network, prunable, ["4"], [0.2], IMAGES, PREPARE):
        assert ScanPoint.from_dict(json.loads(json.dumps(found.to_dict()))) == found
