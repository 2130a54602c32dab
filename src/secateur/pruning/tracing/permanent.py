"""Turns weights that torch computes before each call (masks, norms) into plain parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode


def make_permanent(model: nn.Module) -> None:
    """Replace computed weights of ``model`` by their current values, in place.

    These are the masks of :mod:`torch.nn.utils.prune`, both forms of weight norm and spectral norm,
    and all parametrizations. Layers that compute their weights in forward, as weight
    standardization does, become plain layers. Outputs do not change. The gradient of a masked
    weight is that of its original weight times the mask.
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
        weight = standardized_weight(module)
        if weight is not None:
            _make_plain(module, weight)


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy; computed tensors that layers hold are copied with their current values."""
    values = (value for module in model.modules() for value in vars(module).values())
    computed = (value for value in values if isinstance(value, Tensor) and not value.is_leaf)
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def permanent_copy(model: nn.Module) -> nn.Module:
    """Return a copy, with gradients, whose weights are plain parameters."""
    copied = copy_of(model)
    for new, old in zip(copied.parameters(), model.parameters(), strict=True):
        new.grad = old.grad
    make_permanent(copied)
    return copied


def is_permanent(model: nn.Module) -> bool:
    """Whether all weights of ``model`` are plain parameters."""
    kinds = (torch_prune.BasePruningMethod, WeightNorm, SpectralNorm)
    return not any(
        parametrize.is_parametrized(module)
        or standardized_weight(module) is not None
        or any(isinstance(hook, kinds) for hook in module._forward_pre_hooks.values())
        for module in model.modules()
    )


_PLAIN: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CALLS = (torch.conv1d, torch.conv2d, torch.conv3d)
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class _CatchConvolution(TorchFunctionMode):
    """Records arguments and result of the last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}
        self.result: Any = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CALLS:
            self.arguments = {**dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})}
            self.result = result
        return result


def standardized_weight(layer: nn.Module) -> Tensor | None:
    """Return the weight of a layer that only computes it and convolves, or None.

    The layer runs once. Its convolution must use the layer's own bias, stride, padding, dilation
    and groups; the input and result must be unchanged, and the weight must not depend on the input.
    """
    plain = next((kind for kind in _PLAIN if isinstance(layer, kind)), None)
    if plain is None or type(layer).forward is plain.forward:
        return None
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    weight = layer.weight
    sides = [d * (k - 1) + s for d, k, s in zip(
        layer.dilation, layer.kernel_size, layer.stride, strict=True)]  # fmt: skip
    shape = (2, layer.in_channels, *sides)
    images = torch.zeros(shape, dtype=weight.dtype, device=weight.device, requires_grad=True)
    try:
        with torch.enable_grad(), _CatchConvolution() as caught:
            output = layer(images)
    except Exception:  # the layer needs other inputs
        return None
    arguments = caught.arguments
    alike = all(
        arguments.get(name, getattr(layer, name)) == getattr(layer, name)
        for name in ("stride", "padding", "dilation", "groups")
    )
    own = arguments.get("input") is images and arguments.get("bias") is layer.bias and alike
    if not own or output is not caught.result or arguments["weight"] is weight:
        return None
    computed = arguments["weight"]
    if computed.requires_grad:
        ones = torch.ones_like(computed)
        (dependence,) = torch.autograd.grad(computed, images, ones, allow_unused=True)
        if dependence is not None:
            return None
    return computed.detach() if computed.shape == weight.shape else None


@torch.no_grad()
def _make_plain(layer: nn.Module, weight: Tensor) -> None:
    """Replace a layer by a torch convolution with the computed weight."""
    for tensors in (layer._parameters, layer._buffers):
        for name in [name for name in tensors if name not in ("weight", "bias")]:
            del tensors[name]
    trains = layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.clone(), requires_grad=bool(trains))
    layer.__class__ = next(kind for kind in _PLAIN if isinstance(layer, kind))


@torch.no_grad()
def _end_parametrizations(module: nn.Module) -> None:
    """Equivalent of torch's function, which would change a class shared with copies."""
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
