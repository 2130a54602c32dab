import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur
from helpers.odd_networks import FOLLOWED, Net, assert_same, batch, conv, halves, lively, shuffled
from secateur.errors import NetworkError
from secateur.pruning.find import _failing, _follow, _rejection, _sort, find_prunable
from secateur.pruning.realize import WidthsRejected, realize_widths

IMAGES = batch(3, 8, 8)


def kept(network, widths, scores, **more):
    """What stays along axis 0 of each tensor."""
    prunable = find_prunable(network.double(), IMAGES)
    plan = realize_widths(
        network, prunable, widths, {k: np.array(v) for k, v in scores.items()}, **more
    )
    return {axis.tensor: list(keep) for axis, keep in plan.keeps().items() if axis.axis == 0}


def test_the_highest_scores_stay_in_their_order() -> None:
    network = nn.Sequential(conv(3, 4), conv(4, 2))
    assert kept(network, {"0": 2}, {"0": [3.0, 1, 2, 4]})["0.weight"] == [0, 3]
    assert kept(network, {"0": 3}, {"0": [3.0, 1, 2, 4]})["0.weight"] == [0, 2, 3]
    assert kept(network, {"0": 2}, {"0": [1.0, 1, 1, 1]})["0.weight"] == [2, 3]
    assert kept(network, {"0": 4}, {"0": [1.0, 1, 1, 1]}) == {}


def test_each_half_keeps_its_own_best_where_the_halves_differ() -> None:
    scores = np.arange(16.0)  # the second half is better throughout
    assert kept(halves(F.relu, torch.tanh), {"a": 8}, {"a": scores})["a.weight"] == [
        *range(4, 8),
        *range(12, 16),
    ]


@pytest.mark.parametrize(
    "pixels",
    [
        lambda a: a.flip(3),
        lambda a: a.roll(1, 3),
        lambda a: a.transpose(2, 3),
        lambda a: a.rot90(1, (2, 3)),
        lambda a: F.pad(a, (1, 0, 0, 0))[..., :-1],
        lambda a: torch.cat([a[..., 1:], a[..., :1]], 3),
        lambda a: a.float().double(),
        lambda a: F.avg_pool2d(a, 3, 1, 1),
    ],
)
def test_halves_of_which_one_is_moved_do_not_stand_in_for_each_other(pixels) -> None:
    scores = np.arange(16.0)  # the second half is better throughout
    network = halves(pixels, lambda b: b)
    assert kept(network, {"a": 8}, {"a": scores})["a.weight"] == [*range(4, 8), *range(12, 16)]


@pytest.mark.parametrize(
    "pixels",
    [
        lambda x: x.roll(x.shape[1] // 8, 3),
        lambda x: F.avg_pool2d(x, 1 + x.shape[1] // 8, 1),
        lambda x: F.pad(x, (x.shape[1], 0)),
        lambda x: x[..., x.shape[1] // 8 :],
        lambda x: x + x.shape[1],
    ],
)
def test_a_width_that_decides_what_happens_to_pixels_protects(pixels) -> None:
    def call(network, x):
        return network.b(pixels(network.a(x))).mean((2, 3))

    network = Net(call, a=conv(3, 16), b=conv(16, 4)).double()
    found = find_prunable(network, IMAGES)
    assert not found.groups
    (reason,) = [layer.reason for layer in found.protected if layer.name == "a"]
    assert "computes with" in reason or "it does not run" in reason


def test_alike_halves_do_not_compete_but_for_the_places_there_are() -> None:
    network = Net(lambda n, x: n.b(shuffled(n.a(x), 2)), a=conv(3, 4), b=conv(4, 2)).double()
    prunable = find_prunable(network, IMAGES)
    plan = realize_widths(network, prunable, {"a": 1}, {"a": np.array([4.0, 3, 2, 1])})
    keeps = {(axis.tensor, axis.axis): keep for axis, keep in plan.keeps().items()}
    # 0, 1, 2, 3 arrive as 0, 2, 1, 3; of two, 0 and 1 arrive as 0 and 1.
    assert keeps["a.weight", 0] == (0, 1)
    assert keeps["b.weight", 1] == (0, 2)


def test_a_split_at_a_fixed_width_may_give_fewer_pieces() -> None:
    def call(network, x):
        return network.b(torch.cat(network.a(x).split(3, 1)[::-1], 1)).mean((2, 3))

    torch.manual_seed(0)
    network = lively(Net(call, a=conv(3, 6), b=conv(6, 2)), IMAGES)
    (group,) = find_prunable(network, IMAGES).groups
    assert group.steps == 6
    assert len(kept(network, {"a": 1}, {"a": [1.0] * 6})["a.weight"]) == 1
    plan = secateur.plan_removal(network, IMAGES, 0.5, round_to=1)
    assert_same(secateur.apply_masks(network, plan), secateur.remove(network, plan), IMAGES)


def test_a_group_stays_whole_if_it_may_where_no_width_works() -> None:
    def call(network, x):  # runs at 4 channels and at 8
        y = network.a(x)
        return network.b(y.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2))

    network = Net(call, a=conv(3, 8), b=conv(8, 2)).double()
    prunable = find_prunable(network, IMAGES)
    (group,) = prunable.groups
    assert group.steps == 2
    single = dataclasses.replace(group, steps=8)
    prunable = dataclasses.replace(prunable, groups=(single,))
    scores = {"a": np.arange(8.0)}
    widths = {width: _width(network, prunable, width, scores) for width in (1, 4, 5)}
    assert widths == {1: 4, 4: 4, 5: 8}
    with pytest.raises(WidthsRejected, match="does not run"):
        realize_widths(network, prunable, {"a": 5}, scores)


def _width(network, prunable, width, scores):
    plan = realize_widths(network, prunable, {"a": width}, scores, allow_full=True)
    return secateur.remove(network, plan).a.out_channels


@pytest.mark.parametrize("width", [0, 5, -1])
def test_a_width_that_is_none_is_refused(width) -> None:
    network = nn.Sequential(conv(3, 4), conv(4, 2))
    what = "nothing would be left of a layer" if width < 1 else "a layer cannot grow"
    message = rf"^{what} \(0\): expected 1 to 4 left, found {width}$"
    with pytest.raises(NetworkError, match=message):
        kept(network, {"0": width}, {"0": [1.0] * 4})
    with pytest.raises(
        NetworkError, match=r"cannot be pruned \(1\): .* they are the network's out"
    ):
        kept(network, {"1": 1}, {"1": [1.0] * 2})


def test_a_network_that_computes_otherwise_when_smaller_is_found_out() -> None:
    network = Net(lambda n, x: n.b(n.a(x).relu() * n.gain), a=conv(3, 4), b=conv(4, 2)).double()
    network.gain = 1.0
    prunable = find_prunable(network, IMAGES)
    network.gain = 2.0  # as if it had come from the width
    with pytest.raises(WidthsRejected, match="mul computes with 2 instead of 1"):
        realize_widths(network, prunable, {"a": 3}, {"a": np.ones(4)})


@pytest.mark.parametrize("name", ["res2", "cross_stage", "mixed", "channel_shuffle", "maxout"])
def test_any_scores_and_widths_of_balanced_groups_work(name) -> None:
    torch.manual_seed(0)
    network = lively(FOLLOWED[name](), IMAGES)
    for seed, (fraction, round_to) in enumerate([(0.4, 4), (0.9, 1)]):
        plan = secateur.plan_removal(
            network, IMAGES, fraction, "random", round_to=round_to, seed=seed
        )
        masked, removed = secateur.apply_masks(network, plan), secateur.remove(network, plan)
        assert_same(masked, removed, IMAGES)


class Shifts(nn.Module):
    """Shifts by the number of channels, so that a narrower network computes otherwise."""

    def forward(self, x):
        return x + x.shape[1]


def test_only_groups_of_a_module_that_computes_otherwise_are_tried(monkeypatch) -> None:
    blocks = [nn.Sequential(conv(4, 4), Shifts() if n == 3 else nn.ReLU()) for n in range(8)]
    network = nn.Sequential(conv(3, 4), *blocks, conv(4, 2)).double()
    prunable = _sort(network, _follow(network, IMAGES, False, frozenset()), {}, {})
    runs = []
    real = secateur.pruning.find.realize_exactly
    monkeypatch.setattr(
        "secateur.pruning.find.realize_exactly", lambda *each: (runs.append(1), real(*each))[1]
    )
    failing = _failing(network, prunable, {group.name: 2 for group in prunable.groups})
    assert failing == {"4.0": "smaller, add computes with 2 instead of 4"}
    assert len(runs) == 3  # all groups, and all but one of the two with entries there


def test_groups_whose_width_leaves_no_room_are_found_in_one_run(monkeypatch) -> None:
    network = Net(
        lambda n, x: n.p(x) + n.q(x), p=FOLLOWED["selective"](), q=FOLLOWED["selective"]()
    ).double()
    prunable = _sort(network, _follow(network, IMAGES, False, frozenset()), {}, {})
    runs = []
    real = secateur.pruning.find.realize_exactly
    monkeypatch.setattr(
        "secateur.pruning.find.realize_exactly", lambda *each: (runs.append(each), real(*each))[1]
    )
    assert _rejection(network, prunable, {group.name: 1 for group in prunable.groups}) is None
    assert set(runs[0][3]) - set(runs[1][3]) == {"p.3.a", "q.3.a"}
    assert len(runs) == 2


@pytest.mark.parametrize("differs", [False, True])
def test_training_is_run_in_smaller_networks_where_it_differs_from_inference(differs) -> None:
    def call(network, x):
        x = network.a(x)
        return network.b(x.relu() if network.training and differs else x)

    layers = {"a": nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(0.1)), "b": conv(8, 2)}
    graph = find_prunable(Net(call, **layers), IMAGES.float()).graph
    assert graph.trains == differs
