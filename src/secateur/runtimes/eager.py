"""A network in eager PyTorch: the baseline that files are compared with."""

from __future__ import annotations

import torch
from torch import nn

from secateur.runtimes.protocol import Array


class Eager:
    """A module in inference mode on the CPU, channels last, with a fixed number of threads.

    Args:
        network: A float32 network; set to inference mode.
        threads: Threads inside one operator. The setting is global to the process, so that all
            users in a process must agree.
    """

    name = "torch"
    version: str = torch.__version__.split("+")[0]

    def __init__(self, network: nn.Module, threads: int) -> None:
        torch.set_num_threads(threads)
        self._network = network.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(self, images: Array) -> Array:
        """Return float32 logits (N, classes) for normalized float32 images (N, C, R, R)."""
        batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        return self._network(batch).numpy()
