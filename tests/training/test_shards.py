from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.training.shards import Shards


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64, 3),
    )


def batch(size: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 2, 6, 6, generator=generator)
    return images, torch.randint(0, 3, (size,), generator=generator)


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_the_gradient_is_that_of_parts_normalized_apart() -> None:
    net, (images, labels) = network(), batch()
    shards = Shards(net, 3)
    loss = shards.backward(lambda copy, part: F.cross_entropy(copy(images[part]), labels[part]), 11)
    expected = network()
    parts = [
        F.cross_entropy(expected(images[part]), labels[part], reduction="sum")
        for part in (slice(0, 3), slice(3, 7), slice(7, 11))
    ]
    total = torch.stack(parts).sum() / 11
    total.backward()
    assert torch.allclose(loss, total.detach())
    for one, other in zip(gradients(net), gradients(expected), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_the_same_bits_however_many_threads_there_are() -> None:
    images, labels = batch(64)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        try:
            net = network(dropout=0.5)
            shards = Shards(net, 2)
            with shards.dropout(seed=4):
                shards.backward(
                    lambda copy, part: F.cross_entropy(copy(images[part]), labels[part]), 64
                )
        finally:
            torch.set_num_threads(before)
        results.append(gradients(net))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_parameters_are_shared_and_frozen_ones_stay() -> None:
    net = network()
    net[0].weight.requires_grad_(False)
    shards = Shards(net, 2)
    assert shards.copies[0] is net
    assert all(a is b for a, b in zip(net.parameters(), shards.copies[1].parameters(), strict=True))
    assert shards.copies[1][1].running_mean is not net[1].running_mean  # type: ignore[index]
    images, labels = batch()
    shards.backward(lambda copy, part: F.cross_entropy(copy(images[part]), labels[part]), 11)
    assert net[0].weight.grad is None
    assert net[5].weight.grad is not None


def test_dropout_draws_by_seed_and_copy_and_scales_what_stays() -> None:
    net = network(dropout=0.25)
    shards, ones = Shards(net, 2), torch.ones(2000)
    drawn = []
    for seed in (1, 1, 2):
        with shards.dropout(seed):
            drawn.append([copy[4](ones) for copy in shards.copies])  # type: ignore[index]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0][0], drawn[2][0])
    values = drawn[0][0]
    assert torch.equal(values.unique(), torch.tensor([0, 1 / 0.75]))
    assert abs(values.mean() - 1) < 0.05
    assert "forward" not in vars(net[4])
    with shards.dropout(1):
        assert torch.equal(net.eval()[4](ones), ones)
