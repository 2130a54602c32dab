"""Refuses what cannot be pruned: scripted and quantized modules, and what is no module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.errors import NetworkError

_QUANTIZED = (
    *("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.qat"),
    *("torch.ao.nn.intrinsic.qat", "torch.ao.quantization.fake_quantize"),
    "torch.ao.quantization.observer",
)
_PLAIN = ("FloatFunctional", "FXFloatFunctional")
"""Modules among the quantized ones that compute with floats."""


def refuse_unsuitable(model: Any) -> None:
    """Check that ``model`` is a network of plain modules.

    Raises:
        NetworkError: It is no module, or one of its modules is scripted, quantized, or prepared for
            quantization.
    """
    if not isinstance(model, nn.Module):
        raise NetworkError(
            "not a network",
            expected="a torch.nn.Module",
            found=type(model).__name__,
            remedy="give the module itself, before torch.export or state_dict()",
        )
    for name, module in model.named_modules():
        where = name or type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(
                "cannot prune a scripted module",
                where=where,
                remedy="prune the network before torch.jit.script or torch.jit.trace",
            )
        if type(module).__module__.startswith(_QUANTIZED) and type(module).__name__ not in _PLAIN:
            raise NetworkError(
                "cannot prune a quantized module",
                where=where,
                remedy="prune the network first, then quantize it",
            )
