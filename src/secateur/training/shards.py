"""One batch in equal parts, side by side: a thread and a copy of the network for each part.

Two threads inside one operation meet at its end, several hundred times a step, and wait for the
slower one each time. Two threads with a part of the batch each meet once a step. That is faster on
two quiet cores, and much faster on busy ones: ``benchmarks/training_speed.py``.

Each part is normalized by its own statistics (ghost batch normalization, Hoffer et al. 2017,
arXiv 1705.08741, algorithm 1). The number of parts belongs to the recipe, so that the result does
not depend on the number of cores.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, slice], Tensor]
"""From a copy of the network and a part of the batch to that part's mean loss, a scalar."""


class Shards:
    """Copies of a network that share its parameters and have buffers of their own.

    The network itself is the first copy: its running statistics are those of the first parts.

    Args:
        network: On any device; not changed.
        count: How many parts, 2 or more.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        self.copies = [network, *(_sharing(network) for _ in range(count - 1))]
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        on_cpu = self._parameters[0].device.type == "cpu"
        # On an accelerator the parts take turns: it is one device, and the order stays the same.
        side_by_side = min(count, torch.get_num_threads()) if on_cpu else 1
        threads = max(1, torch.get_num_threads() // count) if on_cpu else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(side_by_side, "shard", torch.set_num_threads, (threads,))

    def backward(self, loss: Loss, size: int) -> Tensor:
        """Leave the gradient of the mean loss of a batch in the parameters' ``grad``.

        Args:
            loss: Called once for each part, from another thread; must not change shared state.
            size: Images in the batch.

        Returns:
            The mean loss, a scalar tensor, detached.
        """
        bounds = [size * i // len(self.copies) for i in range(len(self.copies) + 1)]
        parts = [slice(*pair) for pair in pairwise(bounds)]

        def run(network: nn.Module, part: slice) -> tuple[Tensor, Sequence[Tensor]]:
            share = loss(network, part) * ((part.stop - part.start) / size)
            return share.detach(), torch.autograd.grad(share, self._parameters)

        done = list(self._pool.map(run, self.copies, parts))
        total, gradients = done[0][0], list(done[0][1])
        for share, more in done[1:]:
            total = total + share
            torch._foreach_add_(gradients, list(more))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return total

    @contextmanager
    def dropout(self, seed: int) -> Iterator[None]:
        """Let each copy's dropout draw from a generator of its own.

        torch's dropout draws from one generator that all threads share, in whichever order they
        come.
        """
        layers = []
        for index, network in enumerate(self.copies):
            generator = torch.Generator(self._parameters[0].device)
            generator.manual_seed(seed * len(self.copies) + index)
            for layer in network.modules():
                if isinstance(layer, nn.Dropout):
                    layer.forward = functools.partial(_drop, layer, generator)  # type: ignore[method-assign]
                    layers.append(layer)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class's own method shows again


def _sharing(network: nn.Module) -> nn.Module:
    """Copy a network, its parameters shared."""
    shared = {id(parameter): parameter for parameter in network.parameters()}
    return copy.deepcopy(network, shared)


def _drop(layer: nn.Dropout, generator: torch.Generator, images: Tensor) -> Tensor:
    if not layer.training or not layer.p:
        return images
    kept = torch.empty_like(images).bernoulli_(1 - layer.p, generator=generator)
    return images * kept.div_(1 - layer.p)
