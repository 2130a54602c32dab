"""What a network decides, image by image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secateur.data import Images, Preparation

BATCH = 250


@torch.inference_mode()
def correctness(
    network: nn.Module, images: Images, prepare: Preparation, batch: int = BATCH
) -> npt.NDArray[np.bool_]:
    """Tell for each image whether the class with the highest score is its label.

    The network is put into inference mode and back.

    Args:
        network: On the same device as ``images``.
        images: N images.
        prepare: From stored pixels to the network's input.
        batch: Images at a time.

    Returns:
        Shape (N,).
    """
    training = network.training
    network.eval()
    right = [
        network(prepare(images.pixels[start : start + batch])).argmax(1)
        == images.labels[start : start + batch]
        for start in range(0, len(images), batch)
    ]
    network.train(training)
    return torch.cat(right).cpu().numpy()
