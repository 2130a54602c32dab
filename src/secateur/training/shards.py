"""Data parallelism on a CPU: a thread and a copy of the network for each part of a batch.

Threads inside one operation synchronize at its end, several hundred times per step. Threads with
separate parts of the batch synchronize once per step. That is faster on two idle cores, and much
faster on busy ones; see ``benchmarks/training_speed.py``.

Each part is normalized by its own statistics (ghost batch normalization, Hoffer et al. 2017,
arXiv 1705.08741, algorithm 1). The number of parts is in the recipe, so that the result does not
depend on the number of cores.

Processes that train together (:mod:`secateur.training.ranks`) divide the parts among them and add
up their gradients, which is all that data-parallel training is. A batch of one part is cut into one
for each process, normalized by the statistics of all (:mod:`secateur.training.synchronized`).
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

from secateur.errors import UsageError
from secateur.training import ranks

Loss = Callable[[nn.Module, slice], Tensor]
"""From a copy of the network and a part of the batch to the part's mean loss, a scalar."""


class Shards:
    """Copies of a network with shared parameters and separate buffers.

    The network itself is the first copy: its running statistics are those of the first parts.

    Args:
        network: On any device; not modified.
        count: Number of parts in all processes together, at least 2.

    Raises:
        UsageError: The number of parts is not a multiple of the number of processes.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        if count % ranks.world():
            raise UsageError(
                "recipe key train.shards does not fit",
                where="--devices",
                expected=f"1, or a multiple of {ranks.world()} processes",
                found=count,
            )
        self._count, count = count, count // ranks.world()
        self._first = ranks.rank() * count
        self.copies = [network, *(_sharing(network) for _ in range(count - 1))]
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        on_cpu = self._parameters[0].device.type == "cpu"
        # On an accelerator, parts run sequentially in a fixed order.
        side_by_side = min(count, torch.get_num_threads()) if on_cpu else 1
        threads = max(1, torch.get_num_threads() // count) if on_cpu else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(side_by_side, "shard", torch.set_num_threads, (threads,))

    def own(self, size: int) -> slice:
        """The images of a batch of ``size`` that this process looks at: all, if it is alone."""
        first, last = self._first, self._first + len(self.copies)
        return slice(size * first // self._count, size * last // self._count)

    def backward(self, loss: Loss, size: int) -> Tensor:
        """Set the parameters' ``grad`` to the gradient of the mean loss of a batch.

        Args:
            loss: Called once for each part, from separate threads; must not change shared state.
                Parts are relative to this process's first image.
            size: Batch size.

        Returns:
            The mean loss, a scalar tensor, detached.
        """
        own = self.own(size)
        bounds = [
            size * (self._first + i) // self._count - own.start for i in range(len(self.copies) + 1)
        ]
        parts = [slice(*pair) for pair in pairwise(bounds)]

        def run(network: nn.Module, part: slice) -> tuple[Tensor, Sequence[Tensor]]:
            share = loss(network, part) * ((part.stop - part.start) / size)
            return share.detach(), torch.autograd.grad(share, self._parameters)

        done = list(self._pool.map(run, self.copies, parts))
        total, gradients = done[0][0], list(done[0][1])
        for share, more in done[1:]:
            total = total + share
            torch._foreach_add_(gradients, list(more))
        ranks.add_up(total, *gradients)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return total

    @contextmanager
    def dropout(self, seed: int) -> Iterator[None]:
        """Give each copy's dropout a separate random generator.

        torch's dropout uses one generator for all threads, in an undefined order.
        """
        layers = []
        for index, network in enumerate(self.copies):
            generator = torch.Generator(self._parameters[0].device)
            generator.manual_seed(seed * self._count + self._first + index)
            for layer in network.modules():
                if isinstance(layer, nn.Dropout):
                    layer.forward = functools.partial(_drop, layer, generator)  # type: ignore[method-assign]
                    layers.append(layer)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # restores the class's method


def _sharing(network: nn.Module) -> nn.Module:
    """Copy a network with shared parameters."""
    shared = {id(parameter): parameter for parameter in network.parameters()}
    return copy.deepcopy(network, shared)


def _drop(layer: nn.Dropout, generator: torch.Generator, images: Tensor) -> Tensor:
    if not layer.training or not layer.p:
        return images
    kept = torch.empty_like(images).bernoulli_(1 - layer.p, generator=generator)
    return images * kept.div_(1 - layer.p)
