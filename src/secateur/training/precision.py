"""The arithmetic of a forward pass: fp32, or bfloat16 by autocast."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "auto"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a network runs at a recipe's ``precision``.

    >>> with autocast(torch.device("cpu"), "bf16"):
    ...     torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype
    torch.bfloat16
    """
    half = precision == "bf16" or (precision == "auto" and has_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 in hardware; elsewhere autocast is slower.

    >>> has_bf16(torch.device("meta"))
    False
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Newer than the oldest torch that is supported.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
