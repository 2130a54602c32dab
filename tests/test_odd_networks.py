import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

import secateur
from odd_networks import FOLLOWED, assert_same, batch, lively, outputs
from secateur.cost import parameters
from secateur.pruning.find import find_prunable


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
