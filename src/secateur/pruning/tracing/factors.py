"""Numbers that depend on how many channels there are, and where a parameter takes them up.

A mean over channels divides by their count. In ConvNeXt V2's global response norm (Woo et al. 2023,
eq. 2) the mean is a divisor, and a scale follows: with fewer channels the scale must shrink along.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from secateur.pruning.tracing.labels import Factor, Ledger, Weight
from secateur.pruning.tracing.rules import tensors_in

SMALL = 1e-4
"""Up to this a number that is added only avoids a division by zero."""


def passed_on(
    ledger: Ledger, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Factor | None:
    """The open factor of what an elementwise operation returns.

    A multiplication with a parameter takes the factor up. An operation that neither passes it on
    nor takes it up protects the channels.
    """
    inputs = tensors_in(args, kwargs)
    open_ones = [t for t in inputs if ledger.traits(t).factor is not None]
    if not open_ones:
        return None
    (held, *more) = open_ones
    factor = ledger.traits(held).factor
    assert factor is not None
    partners = _partners(name, args, kwargs, held)
    if more or partners is None:
        for tensor in open_ones:
            ledger.close(tensor)
        return None
    if name == "div" and isinstance(args[1], Tensor) and args[1] is held:
        factor = replace(factor, power=-factor.power)
    for partner in partners:
        weight = ledger.value(partner)
        if isinstance(weight, Weight) and ledger.traits(partner).zero:
            long = [d for d, size in enumerate(weight.shape) if size > 1]
            if len(long) == 1:
                scale = float(factor.count**factor.power)
                ledger.graph.scales.append((scale, ledger.nodes(weight, long[0])))
                return None
    return factor


def _partners(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], held: Tensor
) -> list[Tensor] | None:
    """What an operation multiplies a tensor with; None where it does not pass a factor on."""
    if name in ("mul", "div"):
        return [each for each in args[:2] if isinstance(each, Tensor) and each is not held]
    if name == "add" and len(tensors_in(args)) == 1:
        return [] if abs(float(args[1])) <= SMALL else None
    if name == "addcmul" and len(args) == 3 and args[0] is not held:
        return [each for each in args[1:] if each is not held]
    return None
