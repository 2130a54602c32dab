"""Re-initializes the surviving weights, for retraining from scratch."""

from __future__ import annotations

import copy

import torch
from torch import nn

from secateur.errors import NetworkError
from secateur.pruning.masks import Masks


def reinitialize(model: nn.Module, masks: Masks, seed: int) -> nn.Module:
    """Return a copy of ``model``, on the CPU, with new weights and the masks in force.

    Layers are reset to torch's defaults: weights and biases of convolutions and linear layers are
    uniform in +-1/sqrt(fan-in), and batch-norms are the identity with new statistics. The fan-in of
    an output counts the remaining weights only, so that a sparse layer keeps the variance of a
    dense one.

    Args:
        model: Any network; not modified.
        masks: The remaining weights.
        seed: Seed of the draw, which is the same on any device.

    Raises:
        NetworkError: A layer has parameters and cannot be reset, or a mask does not fit.
    """
    fresh = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in fresh.named_modules():
            if not any(True for _ in layer.parameters(recurse=False)):
                continue
            if not callable(getattr(layer, "reset_parameters", None)):
                raise NetworkError(
                    "cannot re-initialize weights",
                    where=name or type(layer).__name__,
                    expected="a layer with reset_parameters",
                    found=type(layer).__name__,
                )
            layer.reset_parameters()
    masks.apply_(fresh)
    _widen(fresh, masks)
    return fresh


@torch.no_grad()
def _widen(model: nn.Module, masks: Masks) -> None:
    """Scale each output's weights from the bound of the dense fan-in to the remaining one."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.tensors.items():
        if mask.ndim < 2:
            continue
        inputs = mask[0].numel()
        remaining = mask.flatten(1).sum(1).clamp(min=1).to("cpu")
        scale = (inputs / remaining).sqrt().to(parameters[name].dtype)
        parameters[name].mul_(scale.view(-1, *[1] * (mask.ndim - 1)))
