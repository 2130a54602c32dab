"""What a network decides, image by image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
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


@torch.inference_mode()
def judge(
    network: nn.Module, images: Images, prepare: Preparation, batch: int = BATCH
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Tell for each image whether the network is right, and its cross-entropy in nats.

    Arguments as :func:`correctness`.

    Returns:
        Both of shape (N,).
    """
    right, losses = [], []
    for start in range(0, len(images), batch):
        labels = images.labels[start : start + batch]
        scores = network(prepare(images.pixels[start : start + batch]))
        right.append(scores.argmax(1) == labels)
        losses.append(F.cross_entropy(scores.double(), labels, reduction="none"))
    return torch.cat(right).cpu().numpy(), torch.cat(losses).cpu().numpy()


def leave_gradients(
    network: nn.Module, images: Images, prepare: Preparation, batch: int = BATCH
) -> None:
    """Leave in each parameter's ``grad`` the gradient of the mean cross-entropy over ``images``.

    In inference mode, so that batch-norm statistics stay; the network is put back into its mode.

    Args:
        network: On the same device as ``images``.
        images: N images.
        prepare: From stored pixels to the network's input.
        batch: Images at a time.
    """
    training = network.training
    network.eval().zero_grad(set_to_none=True)
    for start in range(0, len(images), batch):
        labels = images.labels[start : start + batch]
        scores = network(prepare(images.pixels[start : start + batch]))
        (F.cross_entropy(scores, labels, reduction="sum") / len(images)).backward()
    network.train(training)
