from __future__ import annotations

import pytest
import torch

import secateur
from secateur.benchmarking.cost import parameters
from secateur.errors import NetworkError
from secateur.models.build import build_network, with_stem
from secateur.recipe import Network

PARAMETERS = {"mobilenet_v2": 2_236_682, "shufflenet_v2_x1_0": 1_263_854, "alexnet": 57_044_810}
# A one-channel first convolution drops two of three input planes.
FIRST = {"mobilenet_v2": 32 * 9, "shufflenet_v2_x1_0": 24 * 9, "alexnet": 64 * 121}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_torchvision_s(name: str) -> None:
    for channels in (3, 1):
        network = build_network(Network(name=name, resolution=224), channels, 10)  # type: ignore[arg-type]
        found = sum(parameter.numel() for parameter in network.parameters())
        assert found == PARAMETERS[name] - (3 - channels) * FIRST[name]


@pytest.mark.parametrize(
    ("name", "stem", "smallest"),
    [("alexnet", "paper", 63), ("alexnet", "cifar", 21), ("mobilenet_v2", "paper", 8)],
)
def test_too_small_a_resolution_names_the_smallest(name: str, stem: str, smallest: int) -> None:
    def build(side: int) -> None:
        config = Network(name=name, stem=stem, resolution=side)  # type: ignore[arg-type]
        build_network(config, 1, 10)

    build(smallest)
    if smallest > 8:
        with pytest.raises(NetworkError, match=rf"at least {smallest}, found {smallest - 1}"):
            build(smallest - 1)


def _map_sides(name: str, stem: str, side: int) -> list[int]:
    """Sides of the square maps that the convolutions give, without repeats, in order."""
    network = build_network(Network(name=name, stem=stem, resolution=side), 1, 10).eval()  # type: ignore[arg-type]
    sides: list[int] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d):
            module.register_forward_hook(lambda m, i, o: sides.append(o.shape[-1]))
    network(torch.zeros(1, 1, side, side))
    return [s for s, before in zip(sides, [0, *sides], strict=False) if s != before]


def test_stems_keep_the_maps_they_promise() -> None:
    assert _map_sides("shufflenet_v2_x1_0", "paper", 32) == [16, 8, 4, 8, 4, 2, 4, 2, 1, 2, 1]
    assert _map_sides("shufflenet_v2_x1_0", "stride1", 32)[:3] == [32, 16, 8]
    assert _map_sides("shufflenet_v2_x1_0", "cifar", 32)[:2] == [32, 16]
    assert _map_sides("mobilenet_v2", "paper", 32) == [16, 8, 4, 2, 1]
    assert _map_sides("mobilenet_v2", "stride1", 32) == [32, 16, 8, 4, 2]
    assert _map_sides("mobilenet_v2", "cifar", 32) == [32, 16, 8, 4]


def test_the_seed_decides_the_weights_and_disturbs_nothing() -> None:
    config = Network(name="shufflenet_v2_x1_0", resolution=28)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (build_network(config, 1, 10, seed) for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    assert torch.equal(first.fc.weight, same.fc.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


@pytest.mark.parametrize("name", ["mobilenet_v2", "alexnet"])
def test_dropout_off_lets_everything_through(name: str) -> None:
    config = Network(name=name, resolution=64, dropout=False)  # type: ignore[arg-type]
    network = build_network(config, 1, 10)
    found = [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)]
    assert found
    assert not any(found)
    on = build_network(config.model_copy(update={"dropout": True}), 1, 10)
    assert all(m.p > 0 for m in on.modules() if isinstance(m, torch.nn.Dropout))


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x1_0"])
def test_without_batch_norm_the_signal_keeps_its_size(name: str) -> None:
    config = Network(name=name, resolution=28, batch_norm="identity")  # type: ignore[arg-type]
    network = build_network(config, 1, 10, seed=3)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    sizes: list[float] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda m, i, o: sizes.append(float(o.detach().std())))
    # Other noise than that which the weights were scaled by.
    noise = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(9))
    network.eval()(noise)
    assert len(sizes) > 50
    assert all(0.5 < size < 2 for size in sizes)
    same = build_network(config, 1, 10, seed=3)
    pairs = zip(network.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x1_0"])
def test_without_batch_norm_removing_is_masking(name: str) -> None:
    config = Network(name=name, resolution=28, batch_norm="identity")  # type: ignore[arg-type]
    network = build_network(config, 1, 10).double().eval()
    images = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    plan = secateur.plan_removal(network, images, fraction=0.4)
    smaller = secateur.remove(network, plan)
    assert parameters(smaller) < 0.6 * parameters(network)
    with torch.no_grad():
        expected, found = secateur.apply_masks(network, plan)(images), smaller(images)
    assert float(expected.std()) > 1e-3
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_network_without_batch_norm_is_as_torchvision_draws_it() -> None:
    config = Network(name="alexnet", resolution=64)
    plain = build_network(config, 1, 10)
    same = build_network(config.model_copy(update={"batch_norm": "identity"}), 1, 10)
    assert torch.equal(plain.features[0].weight, same.features[0].weight)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("stem", ["paper", "stride1", "cifar"])
def test_another_stem_is_the_network_built_with_it(name: str, stem: str) -> None:
    side = 80 if name == "alexnet" else 32
    config = Network(name=name, stem="cifar", resolution=side)  # type: ignore[arg-type]
    other = config.model_copy(update={"stem": stem})
    network, expected = build_network(config, 1, 10).eval(), build_network(other, 1, 10).eval()
    expected.load_state_dict(network.state_dict())
    images = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))
    before = network(images)
    with with_stem(network, config, stem):
        assert torch.equal(network(images), expected(images))
    assert torch.equal(network(images), before)
