"""Weights that torch computes before each call (masks, norms), made plain parameters."""

from __future__ import annotations

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
            for name in list(module.parametrizations):  # type: ignore[union-attr, arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def is_permanent(model: nn.Module) -> bool:
    """Whether no weight of ``model`` is computed before each call."""
    kinds = (torch_prune.BasePruningMethod, WeightNorm, SpectralNorm)
    return not any(
        parametrize.is_parametrized(module)
        or any(isinstance(hook, kinds) for hook in module._forward_pre_hooks.values())
        for module in model.modules()
    )


def _end_pruning(module: nn.Module, name: str) -> None:
    gradient, mask = getattr(module, f"{name}_orig").grad, getattr(module, f"{name}_mask")
    torch_prune.remove(module, name)
    if isinstance(gradient, Tensor):
        getattr(module, name).grad = gradient * mask
