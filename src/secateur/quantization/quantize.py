"""The method: from a float file and a few images to the integers of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from secateur import recipe
from secateur.console import progress, say
from secateur.onnx_ir.model import read_model
from secateur.onnx_ir.padding import pad_widths
from secateur.quantization.bits import BitPoint, Bits, choose_bits
from secateur.quantization.calibrate import METHODS, Method, choose_ranges, count_values
from secateur.quantization.equalize import equalize
from secateur.quantization.histogram import Histogram, Range
from secateur.quantization.pricing import highest_price, scheme_by_price
from secateur.quantization.rounding import recover
from secateur.quantization.scheme import Rules, Scheme, make_scheme
from secateur.quantization.simulate import Simulated
from secateur.quantization.validation import Judge
from secateur.quantization.weights import WeightRule

_BATCH = 64
_MEMORY = 2**26
"""Elements that the largest activation may have while layers are rounded one after another."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What quantization came to.

    Attributes:
        model: The float graph that was rounded: the one given, padded and perhaps equalized.
        ranges: Of the activations.
        rules: Of the weights.
        scheme: Everything rounded.
        chosen: What was chosen on the way, and by which numbers, as plain data.
    """

    model: onnx.ModelProto
    ranges: dict[str, Range]
    rules: Rules
    scheme: Scheme
    chosen: dict[str, Any] = field(default_factory=dict)


def quantize(
    path: Path,
    images: Tensor,
    config: recipe.Quantize,
    judge: Judge | None = None,
    points: Sequence[BitPoint] = (),
) -> Quantized:
    """Quantize a float file without training.

    Args:
        path: A float file of :func:`secateur.onnx_ir.export.export_onnx`.
        images: Normalized training images, float32 (N, C, R, R), on the CPU; no labels are needed.
        config: What to do.
        judge: Asked where the recipe leaves a choice open. Without one, ``auto`` rounding is to
            nearest, and biases stay.
        points: Of :func:`secateur.quantization.bits.scan_bits`, for mixed bits.

    Raises:
        ValueError: The recipe leaves a choice open, and there is no judge or no scan.
        DataError: There are no images, or all their pixels are the same.
        SecateurError: Activations are not finite, or the graph holds what cannot be quantized.
    """
    open_choice = (
        config.method == "auto"
        or config.price == "auto"
        or (config.bits == "mixed" and config.size is None)
    )
    if (open_choice and judge is None) or (config.bits == "mixed" and not points):
        raise ValueError("the recipe leaves a choice open: give a judge, and a scan for mixed bits")
    model, chosen = pad_widths(read_model(path), config.block), dict[str, Any]()
    if config.equalize:
        model = equalize(model)
    histograms = count_values(model, [batch.numpy() for batch in images.split(_BATCH)])
    method: Method = config.method if config.method != "auto" else "minmax"
    rules = _rules(config, {})
    if config.method == "auto" and judge is not None:
        method, chosen["method_loss"] = _best_method(model, histograms, config, rules, judge)
        chosen["method"] = method
    ranges = choose_ranges(histograms, method, config.percentile)
    if config.bits == "mixed":
        rules = _rules(config, _mixed_bits(model, ranges, config, judge, points))
        chosen["bits"] = {name: rule.bits for name, rule in rules.items() if name}
    nearest, some = make_scheme(model, ranges, rules), images[: _images_that_fit(model, images)]
    if config.price:
        scheme, chosen["price"] = _priced(model, nearest, rules, config, some, judge)
    else:
        scheme, chosen["recovery"] = _recovered(model, nearest, rules, config, some, judge)
    return Quantized(model, ranges, rules, scheme, chosen)


def _priced(
    model: onnx.ModelProto,
    nearest: Scheme,
    rules: Rules,
    config: recipe.Quantize,
    images: Tensor,
    judge: Judge | None,
) -> tuple[Scheme, dict[str, Any]]:
    """The scheme at the recipe's price, and what was tried."""
    corrected = config.correct_bias is not False
    scheme_at = scheme_by_price(model, nearest, rules, images, corrected)
    if config.price == "auto":
        assert judge is not None
        return highest_price(model, nearest, scheme_at, judge, config.tolerance / 100)
    return scheme_at(config.price), {"price": config.price}


def _recovered(
    model: onnx.ModelProto,
    nearest: Scheme,
    rules: Rules,
    config: recipe.Quantize,
    images: Tensor,
    judge: Judge | None,
) -> tuple[Scheme, dict[str, float]]:
    """The scheme of least loss among those the recipe allows, and the loss of each."""
    schemes = {}
    for adaptive, correct in _ways(config, rules):
        name = ("adaptive" if adaptive else "nearest") + (", biases corrected" if correct else "")
        schemes[name] = nearest
        if adaptive or correct:
            with progress(f"round: {name}", len(nearest.layers)) as tick:
                schemes[name] = recover(
                    model, nearest, images, rules,
                    adaptive=adaptive, correct_bias=correct, advance=tick.advance,
                )  # fmt: skip
    if len(schemes) == 1 or judge is None:
        return next(iter(schemes.values())), {}
    losses = {name: judge.loss(Simulated(model, scheme)) for name, scheme in schemes.items()}
    best = min(losses, key=losses.__getitem__)
    say(f"quantize: rounding {best} loses least on validation, {losses[best]:.4f} nats")
    return schemes[best], losses


def _ways(config: recipe.Quantize, rules: Rules) -> list[tuple[bool, bool]]:
    """Each way to round that the recipe allows: adaptive or not, biases corrected or not."""
    narrow = any(rule.bits < 8 for rule in rules.values())
    known = {"nearest": [False], "adaptive": [True], "auto": [False, True] if narrow else [False]}
    corrections = [False, True] if config.correct_bias == "auto" else [config.correct_bias]
    return [(adaptive, correct) for adaptive in known[config.rounding] for correct in corrections]


def weight_rule(config: recipe.Quantize, bits: int = 8) -> WeightRule:
    """The rule of a weight of ``bits``."""
    return WeightRule(bits, config.per_channel, config.saturation_free)


def _rules(config: recipe.Quantize, bits: Bits) -> dict[str, WeightRule]:
    every = config.bits if config.bits != "mixed" else 8
    named = {name: weight_rule(config, width) for name, width in bits.items()}
    return {"": weight_rule(config, every), **named}


def _best_method(
    model: onnx.ModelProto,
    histograms: dict[str, Histogram],
    config: recipe.Quantize,
    rules: Rules,
    judge: Judge,
) -> tuple[Method, dict[str, float]]:
    losses: dict[Method, float] = {}
    for method in METHODS:
        ranges = choose_ranges(histograms, method, config.percentile)
        losses[method] = judge.loss(Simulated(model, make_scheme(model, ranges, rules)))
    best = min(losses, key=losses.__getitem__)
    say(f"quantize: {best} ranges lose least on validation, {losses[best]:.4f} nats")
    return best, {str(name): loss for name, loss in losses.items()}


def _mixed_bits(
    model: onnx.ModelProto,
    ranges: dict[str, Range],
    config: recipe.Quantize,
    judge: Judge | None,
    points: Sequence[BitPoint],
) -> Bits:
    if config.size is not None or judge is None:
        return choose_bits(points, size=config.size)
    needed = judge.accuracy(Simulated(model)) - config.tolerance / 100

    def acceptable(bits: Bits) -> bool:
        scheme = make_scheme(model, ranges, _rules(config, bits))
        return judge.accuracy(Simulated(model, scheme)) >= needed

    return choose_bits(points, acceptable=acceptable)


@torch.no_grad()
def _images_that_fit(model: onnx.ModelProto, images: Tensor) -> int:
    """How many images may be in memory at once, by the largest activation of one."""
    network = Simulated(model)
    values = network.start(images[:1])
    largest = max(max(v.numel() for v in values.values()) for _ in network.walk(values))
    return int(np.clip(_MEMORY // largest, 1, len(images)))
