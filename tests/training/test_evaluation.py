"""One evaluation loop for modules, functions and runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import secateur
from secateur.data import Images
from secateur.runtimes import open_file
from secateur.training.evaluation import (
    correct,
    correct_and_loss,
    correctness,
    evaluate,
    leave_gradients,
    scorer,
)

NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Dropout(0.9))
PIXELS = torch.randint(0, 256, (11, 1, 8, 8), generator=torch.Generator().manual_seed(0))
IMAGES = Images(PIXELS.to(torch.uint8), torch.arange(11) % 3, ("a", "b", "c"))


def prepare(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 255 - 0.5


def expected() -> np.ndarray:
    scores = NETWORK.eval()(prepare(IMAGES.pixels[:]))
    return (scores.argmax(1) == IMAGES.labels).numpy()


def test_the_last_batch_is_smaller_and_nothing_is_lost() -> None:
    sizes = [len(scores) for scores, _ in evaluate(NETWORK.eval(), IMAGES, prepare, batch=4)]
    assert sizes == [4, 4, 3]
    assert (correct(NETWORK.eval(), IMAGES, prepare, batch=4) == expected()).all()


def test_a_module_is_evaluated_in_inference_mode_and_put_back() -> None:
    NETWORK.train()
    right = correctness(NETWORK, IMAGES, prepare)
    assert NETWORK.training
    assert (right == expected()).all()


def test_a_runtime_agrees_with_the_module(tmp_path: Path) -> None:
    path = secateur.export(NETWORK, tmp_path / "net.onnx", (1, 8, 8))
    right = correct(scorer(open_file(path, 1)), IMAGES, prepare, batch=5)
    assert (right == expected()).all()


def test_losses_are_those_of_each_image() -> None:
    right, losses = correct_and_loss(NETWORK.eval(), IMAGES, prepare, batch=4)
    scores = NETWORK.eval()(prepare(IMAGES.pixels[:])).double()
    by_hand = -scores.log_softmax(1)[torch.arange(11), IMAGES.labels]
    assert np.allclose(losses, by_hand.detach().numpy())
    assert (right == expected()).all()


@torch.no_grad()
def test_gradients_are_left_where_the_caller_has_turned_them_off() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    leave_gradients(network, IMAGES, prepare, batch=4)
    assert network[1].weight.grad is not None
