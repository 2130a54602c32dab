"""The price of a bit: the highest at which the network still does what it should."""

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
"""Nats a megabyte to choose from: 0.001 to about 1, two for each octave."""

SchemeAt = Callable[[float], Scheme]


def scheme_by_price(
    model: onnx.ModelProto, nearest: Scheme, rules: Rules, images: Tensor, correct_bias: bool
) -> SchemeAt:
    """Return what gives the scheme at a price in nats a megabyte.

    Args:
        model: The float graph.
        nearest: Its scheme, rounded to nearest; layers that are not priced keep their integers.
        rules: How weights are quantized.
        images: Normalized float32 (N, C, R, R), as many as fit into memory at once.
        correct_bias: Correct biases.

    Raises:
        SecateurError: The graph holds an operator that cannot be simulated.
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
        network_of: Makes the network that a scheme rounds; None for the float network.
        nearest: What is returned where even the lowest price loses too much.
        scheme_at: Of :func:`scheme_by_price`.
        validation: Measures the accuracy lost.
        tolerance: Accuracy that may be lost, in [0, 1], at the upper end of its 95 % interval.

    Returns:
        The scheme, and as plain data its price (0 for ``nearest``) and what was lost at each tried.
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
