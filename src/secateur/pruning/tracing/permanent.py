"""Weights that torch computes before each call (masks, norms), made plain parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def make_permanent(model: nn.Module) -> None:
    """Replace computed weights of ``model`` by what they are now, in place.

    These are the masks of :mod:`torch.nn.utils.prune`, both forms of weight norm and spectral norm,
    and every parametrization. What a layer computes stays the same. A gradient of a masked weight
    is that of the weight it was computed from, times the mask.
    """
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, torch_prune.BasePruningMethod):
                _end_pruning(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                nn.utils.remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            _end_parametrizations(module)


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy; a tensor that a layer computed and holds is copied as what it is now."""
    held = (value for module in model.modules() for value in vars(module).values())
    computed = (value for value in held if isinstance(value, Tensor) and not value.is_leaf)
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def permanent_copy(model: nn.Module) -> nn.Module:
    """Return a copy, with gradients, whose weights are plain parameters."""
    copied = copy_of(model)
    for new, old in zip(copied.parameters(), model.parameters(), strict=True):
        new.grad = old.grad
    make_permanent(copied)
    return copied


def is_permanent(model: nn.Module) -> bool:
    """Whether no weight of ``model`` is computed before each call."""
    kinds = (torch_prune.BasePruningMethod, WeightNorm, SpectralNorm)
    return not any(
        parametrize.is_parametrized(module)
        or any(isinstance(hook, kinds) for hook in module._forward_pre_hooks.values())
        for module in model.modules()
    )


@torch.no_grad()
def _end_parametrizations(module: nn.Module) -> None:
    """As torch's own function, which changes a class that the network and its copies share."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    parametrizations.eval()
    values = {name: getattr(module, name).clone() for name in parametrizations}
    trains = {
        name: any(p.requires_grad for p in each.parameters())
        for name, each in parametrizations.items()
    }
    del module._modules["parametrizations"]
    module.__class__ = parametrize.type_before_parametrizations(module)
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trains[name]))


def _end_pruning(module: nn.Module, name: str) -> None:
    gradient, mask = getattr(module, f"{name}_orig").grad, getattr(module, f"{name}_mask")
    torch_prune.remove(module, name)
    if isinstance(gradient, Tensor):
        getattr(module, name).grad = gradient * mask
