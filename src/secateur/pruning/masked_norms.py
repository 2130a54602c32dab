"""Norms over channels in a masked network, with statistics of the remaining channels only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.pruning.plan import Plan

_NORMS = {
    torch.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    torch.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    torch.group_norm: ("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
}


def count_what_stays(model: nn.Module, plan: Plan) -> None:
    """Make norms over channels of ``model`` use only the channels that ``plan`` keeps, in place."""
    parameters = {name for name, tensor in model.named_parameters() if tensor.ndim == 1}
    kept = {
        axis.tensor: torch.tensor(sorted(keep))
        for axis, keep in plan.keeps().items()
        if axis.tensor in parameters
    }
    if kept:
        guard = _Guard(kept)
        model.register_forward_pre_hook(guard.enter)
        model.register_forward_hook(guard.leave, always_call=True)


class _Guard:
    """Replaces norms while a network runs."""

    def __init__(self, kept: dict[str, Tensor]) -> None:
        self.kept = kept
        self.active: list[_CountKept] = []

    def enter(self, model: nn.Module, _: Any) -> None:
        parameters = dict(model.named_parameters())
        mode = _CountKept({id(parameters[name]): index for name, index in self.kept.items()})
        mode.__enter__()
        self.active.append(mode)

    def leave(self, *_: Any) -> None:
        self.active.pop().__exit__(None, None, None)


class _CountKept(TorchFunctionMode):
    """Replaces each norm over channels by the norm of the remaining ones, zero elsewhere."""

    def __init__(self, kept: dict[int, Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = {**dict(zip(_NORMS.get(func, ()), args, strict=False)), **(kwargs or {})}
        weight = arguments.get("weight")
        index = self.kept.get(id(weight)) if func in _NORMS else None
        if index is None or arguments.get("num_groups", 1) != 1:
            return func(*args, **(kwargs or {}))
        images = arguments.pop("input")
        dimension = 1 if "num_groups" in arguments else images.ndim - 1
        if "normalized_shape" in arguments:
            arguments["normalized_shape"] = (len(index),)
        index = index.to(images.device)
        for name in ("weight", "bias"):
            if arguments.get(name) is not None:
                arguments[name] = arguments[name].index_select(0, index)
        normed = func(images.index_select(dimension, index), **arguments)
        return torch.zeros_like(images).index_copy(dimension, index, normed)
