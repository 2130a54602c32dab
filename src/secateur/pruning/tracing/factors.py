"""Factors that depend on the number of channels, and the parameters that absorb them.

A mean over channels divides by their count. In the global response norm of ConvNeXt V2 (Woo et al.
2023, eq. 2), the mean is a divisor, followed by a scale. With fewer channels, the scale must be
changed accordingly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from secateur.pruning.tracing.labels import Factor, Ledger, Weight
from secateur.pruning.tracing.rules import tensors_in

SMALL = 1e-6
"""Largest added number that is taken as protection against division by zero; the scale that absorbs
the factor does not correct it."""


def passed_on(
    ledger: Ledger, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Factor | None:
    """The open factor of an elementwise operation's result.

    A multiplication with a parameter absorbs the factor. An operation that neither propagates nor
    absorbs it protects the channels.
    """
    inputs = tensors_in(args, kwargs)
    open_ones = [t for t in inputs if ledger.traits(t).factor is not None]
    if not open_ones:
        return None
    (tensor, *more) = open_ones
    factor = ledger.traits(tensor).factor
    assert factor is not None
    partners = _partners(name, args, kwargs, tensor)
    if more or partners is None:
        for tensor in open_ones:
            ledger.close(tensor)
        return None
    if name == "div" and isinstance(args[1], Tensor) and args[1] is tensor:
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
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensor: Tensor
) -> list[Tensor] | None:
    """The other factors of a product; None if the operation does not propagate factors."""
    if name in ("mul", "div"):
        return [each for each in args[:2] if isinstance(each, Tensor) and each is not tensor]
    if name == "add" and len(tensors_in(args)) == 1:
        return [] if abs(float(args[1])) <= SMALL else None
    if name == "addcmul" and len(args) == 3 and args[0] is not tensor:
        return [each for each in args[1:] if each is not tensor]
    return None
