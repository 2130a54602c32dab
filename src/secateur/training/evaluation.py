"""Evaluation of networks on labeled images, for modules, graphs and runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.data import Images
from secateur.data.images import in_turn, parts_of
from secateur.runtimes import Runtime

BATCH = 250

Scorer = Callable[[Tensor], Tensor]
"""From prepared images, float32 (N, C, H, W), to scores, float (N, classes)."""

Prepare = Callable[[Tensor], Tensor]
"""From stored pixels, uint8 (N, C, H, W), to the network's input, such as a Preparation."""


def scorer(runtime: Runtime) -> Scorer:
    """A runtime as a function of tensors on the CPU."""
    return lambda images: torch.from_numpy(runtime.run(images.contiguous().numpy()))


@torch.inference_mode()
def evaluate(
    network: Scorer, images: Images, prepare: Prepare, batch: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield scores, float (n, classes), and labels, int64 (n,), of each batch.

    Args:
        network: On the same device as ``images``, in inference mode.
        images: N images.
        prepare: Maps stored pixels to the network's input.
        batch: Batch size.
    """
    parts = parts_of(len(images), batch)
    for part, pixels in zip(parts, in_turn(images.pixels, parts), strict=True):
        scores = network(prepare(pixels))
        yield scores, images.labels[part].to(scores.device)


def correct(
    network: Scorer, images: Images, prepare: Prepare, batch: int = BATCH
) -> npt.NDArray[np.bool_]:
    """Return for each image whether the class with the highest score is its label.

    Arguments: see :func:`evaluate`.

    Returns:
        Shape (N,).
    """
    pairs = evaluate(network, images, prepare, batch)
    return torch.cat([scores.argmax(1) == labels for scores, labels in pairs]).cpu().numpy()


def correct_and_loss(
    network: Scorer, images: Images, prepare: Prepare, batch: int = BATCH
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Return for each image whether it is classified correctly, and its cross-entropy in nats.

    Arguments: see :func:`evaluate`.

    Returns:
        Both of shape (N,).
    """
    right, losses = [], []
    for scores, labels in evaluate(network, images, prepare, batch):
        right.append(scores.argmax(1) == labels)
        losses.append(F.cross_entropy(scores.double(), labels, reduction="none"))
    return torch.cat(right).cpu().numpy(), torch.cat(losses).cpu().numpy()


def correctness(
    network: nn.Module, images: Images, prepare: Prepare, batch: int = BATCH
) -> npt.NDArray[np.bool_]:
    """:func:`correct` of a module in inference mode; its mode is restored."""
    with _inference(network):
        return correct(network, images, prepare, batch)


@contextmanager
def _inference(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@torch.enable_grad()
def leave_gradients(
    network: nn.Module, images: Images, prepare: Prepare, batch: int = BATCH
) -> None:
    """Set each parameter's ``grad`` to the gradient of the mean cross-entropy over ``images``.

    In inference mode, so that batch-norm statistics do not change; the mode is restored.

    Args:
        network: On the same device as ``images``.
        images: N images.
        prepare: Maps stored pixels to the network's input.
        batch: Batch size.
    """
    network.zero_grad(set_to_none=True)
    with _inference(network):
        parts = parts_of(len(images), batch)
        for part, pixels in zip(parts, in_turn(images.pixels, parts), strict=True):
            labels = images.labels[part]
            scores = network(prepare(pixels))
            (F.cross_entropy(scores, labels, reduction="sum") / len(images)).backward()
