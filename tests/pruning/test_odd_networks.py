import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

import secateur
from helpers.odd_networks import FOLLOWED, Net, assert_same, batch, conv, lively, outputs, tail
from secateur.benchmarking.cost import parameters
from secateur.onnx_ir.export import export_onnx
from secateur.pruning.find import find_prunable
from secateur.runtimes import OnnxRuntime


@pytest.mark.filterwarnings("ignore::secateur.pruning.removal.NothingRemovedWarning")
@pytest.mark.parametrize("name", FOLLOWED)
def test_removed_is_masked_and_smaller_and_trains(name):
    torch.manual_seed(0)
    images = batch(3, 16, 16)
    network = lively(FOLLOWED[name](), images)
    before = copy.deepcopy(network.state_dict())
    for seed, (fraction, round_to) in enumerate([(0.5, 1), (0.3, 4), (0.8, 1)]):
        plan = secateur.plan_removal(
            network, images, fraction, "random", round_to=round_to, seed=seed
        )
        masked, removed = secateur.apply_masks(network, plan), secateur.remove(network, plan)
        assert_same(masked, removed, images)
        if round_to == 1:
            assert parameters(removed) < parameters(network)
            assert not torch.allclose(outputs(masked, images), outputs(network, images))
    loss = sum(head.square().mean() for head in tree_leaves(removed.train()(images)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in removed.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not find_prunable(network, images).unfollowed


def test_a_smaller_network_that_branches_on_shapes_is_exported(tmp_path):
    def call(network, x):  # torch.fx cannot trace it
        return network.tail(network.a(x).relu() if x.shape[2] > 4 else x)

    network = Net(call, a=conv(3, 8), tail=tail(8)).eval()
    images = batch(3, 8, 8).float()
    smaller = secateur.remove(network, secateur.plan_removal(network, images, round_to=1))
    export_onnx(smaller, (3, 8, 8), tmp_path / "network.onnx", {})
    found = torch.from_numpy(OnnxRuntime(tmp_path / "network.onnx", 1).run(images.numpy()))
    torch.testing.assert_close(found, outputs(smaller, images))
