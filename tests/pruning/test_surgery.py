from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur
from helpers.odd_networks import FOLLOWED, Net, assert_same, batch, conv, lively, tail
from secateur.errors import NetworkError
from secateur.pruning.plan import Cut, Fold, Plan
from secateur.pruning.surgery import (
    apply_masks,
    rebuild,
    remove,
    shrink_optimizer,
    shrink_state,
)

IMAGES = batch(3, 16, 16)


def halved(name: str) -> tuple[nn.Module, Plan]:
    torch.manual_seed(0)
    network = lively(FOLLOWED[name](), IMAGES)
    return network, secateur.plan_removal(network, IMAGES, 0.5, "random", round_to=1)


def sums() -> nn.Sequential:
    """Sums over 2x2 images of x, 2x, 3x: 6 times the sum of all pixels, and 24 at ones."""
    network = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1, bias=False)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 2, 3]).view(3, 1, 1, 1))
        network[0].bias.zero_()
        network[3].weight.fill_(1)
    return network.eval()


def test_the_smallest_channel_goes_with_its_map() -> None:
    network = sums()
    plan = secateur.plan_removal(network, torch.zeros(1, 1, 2, 2), 0.4, round_to=1)
    assert plan.cuts == (
        Cut(module="0", axis=0, tensors=("weight", "bias"), size=3, keep=(1, 2)),
        Cut(module="3", axis=1, tensors=("weight",), size=12, keep=(4, 5, 6, 7, 8, 9, 10, 11)),
    )
    smaller, masked = remove(network, plan), apply_masks(network, plan)
    x = torch.tensor([[[[1.0, 2], [3, 4]]]])
    assert smaller(x).item() == masked(x).item() == 5 * 10
    assert network(x).item() == 6 * 10  # left alone
    assert (smaller[0].out_channels, smaller[3].in_features) == (2, 8)
    assert masked[0].weight.flatten().tolist() == [0, 2, 3]


def test_layers_say_how_wide_they_are() -> None:
    layers = [
        *(conv(3, 16), nn.GroupNorm(4, 16), nn.PReLU(16), conv(16, 16, groups=16)),
        *(nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 12, 3), nn.InstanceNorm2d(12, affine=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 2)),
    ]
    network = nn.Sequential(*layers)
    plan = secateur.plan_removal(network, torch.zeros(1, 3, 8, 8), 0.5, round_to=1)
    expected = [
        *(conv(3, 8), nn.GroupNorm(2, 8), nn.PReLU(8), conv(8, 8, groups=8), nn.BatchNorm2d(8)),
        *(nn.ConvTranspose2d(8, 6, 3), nn.InstanceNorm2d(6, affine=True), layers[7], layers[8]),
        *(nn.Linear(6, 4), nn.Linear(4, 2)),
    ]
    assert [str(layer) for layer in remove(network, plan)] == [str(layer) for layer in expected]


def test_statistics_go_along_and_the_order_stays() -> None:
    network, plan = halved("rep")
    smaller = remove(network, plan)
    keep = next(cut.keep for cut in plan.cuts if cut.module == "1")
    assert list(keep) == sorted(keep)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(smaller[1], name), getattr(network[1], name)[list(keep)])
    assert smaller[1].num_batches_tracked == network[1].num_batches_tracked


def test_shared_tensors_stay_shared_and_frozen_ones_frozen() -> None:
    network, plan = halved("tied")
    network[0].weight.requires_grad_(False)
    smaller = remove(network, plan)
    assert smaller[3][0].weight is smaller[3][2].weight
    assert not smaller[0].weight.requires_grad
    assert smaller[0].bias.requires_grad


def test_modes_and_memory_format_stay() -> None:
    network, plan = halved("rep")
    network.train().to(memory_format=torch.channels_last)
    network[1].eval()
    smaller = remove(network, plan)
    assert smaller.training
    assert not smaller[1].training
    assert smaller[4].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["res2", "frozen_norm"])
def test_spec_plan_and_weights_bring_a_network_back_in_another_process(name, tmp_path) -> None:
    network, plan = halved(name)
    smaller = remove(network, plan)
    save_file(smaller.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "plan.json").write_text(plan.to_json())
    code = f"""
import json, sys, torch
from safetensors.torch import load_file
from helpers.odd_networks import FOLLOWED, batch
from secateur.pruning.plan import Plan
from secateur.pruning.surgery import rebuild
plan = Plan.from_json(open("{tmp_path}/plan.json").read())
network = rebuild(FOLLOWED["{name}"](), plan).double().eval()
network.load_state_dict(load_file("{tmp_path}/weights.safetensors"))
print(json.dumps(network(batch(3, 16, 16)).tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="tests"
    )
    found = torch.tensor(json.loads(done.stdout), dtype=torch.float64)
    torch.testing.assert_close(found, smaller(IMAGES), rtol=1e-12, atol=0)


# ---- what goes along with the weights


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.AdamW, {"lr": 0.1, "amsgrad": True}),
    ],
)
def test_an_optimizer_goes_on_as_that_of_the_masked_network(kind, options) -> None:
    network, plan = halved("excite")
    for layer in network.modules():  # else masked channels would move a batch's statistics
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    optimizer = kind(
        [{"params": network[0].parameters(), "lr": 0.01}, {"params": network[3:].parameters()}],
        **options,
    )
    loss = network(IMAGES).square().mean()
    loss.backward()
    optimizer.step()
    smaller = remove(network, plan)
    again = shrink_optimizer(optimizer, network, smaller, plan)
    assert [group["lr"] for group in again.param_groups] == [0.01, 0.1]
    keep = list(next(cut.keep for cut in plan.cuts if cut.module == "0"))
    for key, state in optimizer.state[network[0].weight].items():
        kept = again.state[smaller[0].weight][key]
        assert torch.equal(kept, state if state.ndim == 0 else state[keep])
    before = copy.deepcopy(optimizer.state_dict())
    smaller(IMAGES).square().mean().backward()
    again.step()
    assert str(before) == str(optimizer.state_dict())  # left alone


def test_factored_moments_shrink_along_the_axes_that_they_have() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    optimizer = torch.optim.Adafactor(network.parameters(), lr=0.1)
    network(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    plan = secateur.plan_removal(network, torch.zeros(1, 4), 0.5, round_to=1)
    smaller = remove(network, plan)
    again = shrink_optimizer(optimizer, network, smaller, plan)
    assert again.state[smaller[0].weight]["row_var"].shape == (3, 1)
    assert again.state[smaller[0].weight]["col_var"].shape == (1, 4)
    smaller(torch.ones(2, 4)).sum().backward()
    again.step()


def test_a_moving_average_shrinks_and_unknown_names_stay() -> None:
    network, plan = halved("rep")
    smaller = remove(network, plan)
    average = {key: value + 1 for key, value in network.state_dict().items()}
    shrunk = shrink_state({**average, "steps": torch.tensor(3)}, plan)
    assert shrunk.pop("steps") == 3
    for key, value in smaller.state_dict().items():
        assert torch.equal(shrunk[key], value + 1)
    with pytest.raises(NetworkError, match=r"\(0.weight\): expected 16 entries on axis 0"):
        shrink_state(shrunk, plan)


# ---- constants


def test_a_fold_adds_what_a_constant_input_made() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, (1, 2)), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.arange(8.0).view(2, 2, 1, 2))
        network[0].bias.fill_(10)
    into_bias = Fold(module="0", inputs=(1,), values=(2.0,), into="0.bias")
    into_mean = Fold(module="0", inputs=(1,), values=(2.0,), into="1.running_mean")
    # Input 1 meets 2 + 3 in the first filter, 6 + 7 in the second.
    assert remove(network, Plan(folds=(into_bias,)))[0].bias.tolist() == [10 + 10, 10 + 26]
    assert remove(network, Plan(folds=(into_mean,)))[1].running_mean.tolist() == [-10, -26]
    assert rebuild(network, Plan(folds=(into_bias,)))[0].bias.tolist() == [10, 10]


def test_a_plan_for_constants_says_the_same_masked_and_removed() -> None:
    network = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2, 1), tail(2))
    with torch.no_grad():
        network[0].weight[1] = 0
        network[0].bias[1] = 5
    lively_images = batch(3, 8, 8)
    cuts = (
        Cut(module="0", axis=0, tensors=("weight", "bias"), size=4, keep=(0, 2, 3)),
        Cut(module="2", axis=1, tensors=("weight",), size=4, keep=(0, 2, 3)),
    )
    plan = Plan(folds=(Fold(module="2", inputs=(1,), values=(5.0,), into="2.bias"),), cuts=cuts)
    network.double()
    assert_same(network, remove(network, plan), lively_images)
    assert_same(apply_masks(network, plan), remove(network, plan), lively_images)


# ---- what does not fit


def cut(module: str, axis: int, size: int, keep: tuple[int, ...], leaf: str = "weight") -> Plan:
    return Plan(cuts=(Cut(module=module, axis=axis, tensors=(leaf,), size=size, keep=keep),))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (cut("9", 0, 3, (0,)), r"\(9\): expected a module, found none of that name"),
        (cut("0", 0, 3, (0,), "gain"), r"\(0.gain\): expected a tensor, found none of that name"),
        (
            cut("0", 0, 4, (0,)),
            r"\(0.weight\): expected 4 entries on axis 0, found shape \(3, 1, 1",
        ),
        (
            cut("3", 1, 8, (0,)),
            r"\(3.weight\): expected 8 entries on axis 1, found shape \(1, 12\)",
        ),
        (cut("3", 2, 8, (0,)), r"\(3.weight\): expected 8 entries on axis 2"),
        (cut("0", 0, 3, ()), r"\(0.weight\): expected distinct indices below 3, at least one"),
        (cut("0", 0, 3, (0, 3)), r"distinct indices below 3, at least one, found \[0, 3\]"),
        (cut("0", 0, 3, (1, 1)), r"distinct indices below 3, at least one, found \[1, 1\]"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(plan: Plan, message: str) -> None:
    network = sums()
    for act in (remove, rebuild, apply_masks):
        with pytest.raises(
            NetworkError, match=f"^removal plan does not fit the network.*{message}"
        ):
            act(network, plan)
    assert network(torch.ones(1, 1, 2, 2)).item() == 24  # left alone


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (Fold(module="1", inputs=(0,), values=(1.0,), into="0.bias"), r"\(1\): expected a layer"),
        (
            Fold(module="3", inputs=(0,), values=(1.0,), into="3.bias"),
            r"\(3.bias\): expected a tens",
        ),
        (
            Fold(module="3", inputs=(12,), values=(1.0,), into="0.bias"),
            r"\(3\): expected inputs belo",
        ),
        (
            Fold(module="3", inputs=(0,), values=(), into="0.bias"),
            r"\(3\): expected inputs below 12",
        ),
        (
            Fold(module="3", inputs=(0,), values=(1.0,), into="0.bias"),
            r"\(0.bias\): expected \(1,\)",
        ),
    ],
)
def test_a_fold_that_does_not_fit_is_refused(fold: Fold, message: str) -> None:
    for act in (remove, apply_masks):
        with pytest.raises(NetworkError, match=message):
            act(sums(), Plan(folds=(fold,)))


def test_tensors_that_layers_computed_and_hold_are_copied() -> None:
    network = Net(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=conv(4, 2))
    network.held = network.a.weight * 2
    plan = secateur.plan_removal(network, torch.zeros(1, 3, 8, 8), round_to=1)
    for act in (remove, rebuild, apply_masks):
        assert torch.equal(act(network, plan).held, network.held)
