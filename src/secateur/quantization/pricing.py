"""Chooses the highest price of a bit within the tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from torch import Tensor

from secateur.console import progress, say
from secateur.onnx_ir.model import Graph
from secateur.quantization.curvature import output_curvature
from secateur.quantization.rate import Rate, priced_layers
from secateur.quantization.rounding import recover
from secateur.quantization.scheme import Rules, Scheme
from secateur.quantization.validation import Validation
from secateur.statistics import Interval, paired_drop
from secateur.training.evaluation import Scorer

PRICES = tuple(round(0.001 * 2 ** (i / 2), 6) for i in range(21))
"""Candidate prices in nats per megabyte: 0.001 to about 1, two per octave."""

SchemeAt = Callable[[float], Scheme]


def scheme_by_price(
    model: onnx.ModelProto, nearest: Scheme, rules: Rules, images: Tensor, correct_bias: bool
) -> SchemeAt:
    """Return a function from a price in nats per megabyte to the scheme.

    Args:
        model: The float graph.
        nearest: Scheme rounded to nearest; other layers keep its integers.
        rules: Rules of weight quantization.
        images: Normalized float32 (N, C, R, R), which must fit into memory.
        correct_bias: Whether to correct biases.

    Raises:
        SecateurError: An operator of the graph cannot be simulated.
    """
    curvature = output_curvature(model, images)
    known = {name: curvature[name] for name in priced_layers(Graph(model))}

    def scheme_at(price: float) -> Scheme:
        with progress(f"round: {price:g} nats a megabyte", len(nearest.layers)) as tick:
            return recover(
                model, nearest, images, rules,
                correct_bias=correct_bias, rate=Rate(price, known), advance=tick.advance,
            )  # fmt: skip

    return scheme_at


def highest_price(
    network_of: Callable[[Scheme | None], Scorer],
    nearest: Scheme,
    scheme_at: SchemeAt,
    validation: Validation,
    tolerance: float,
) -> tuple[Scheme, dict[str, Any]]:
    """Find the highest of :data:`PRICES` that is within ``tolerance``, by bisection.

    Args:
        network_of: From a scheme to a network; None gives the float network.
        nearest: Returned if even the lowest price loses too much.
        scheme_at: Result of :func:`scheme_by_price`.
        validation: Measures accuracy.
        tolerance: Largest loss of accuracy, in [0, 1], at the upper end of its 95 % interval.

    Returns:
        The scheme, and as plain data its price (0 for ``nearest``) and the loss at each price
        tried.
    """
    reference, tried = validation.right(network_of(None)), {}
    good, bad, best = -1, len(PRICES), nearest
    while bad - good > 1:
        middle = (good + bad) // 2
        scheme = scheme_at(PRICES[middle])
        drop = paired_drop(reference, validation.right(network_of(scheme)))
        tried[f"{PRICES[middle]:g}"] = list(drop)
        say(f"quantize: {PRICES[middle]:g} nats a megabyte lose {_points(drop)} on validation")
        if drop.high <= tolerance:
            good, best = middle, scheme
        else:
            bad = middle
    return best, {"price": PRICES[good] if good >= 0 else 0, "drops": tried}


def _points(drop: Interval) -> str:
    value, low, high = (100 * bound for bound in drop)
    return f"{value:.2f} [{low:.2f}, {high:.2f}] points"
