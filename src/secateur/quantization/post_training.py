"""Post-training quantization of a float graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from torch import Tensor

from secateur import recipe
from secateur.console import progress, say
from secateur.onnx_ir.padding import pad_widths
from secateur.quantization.bits import BitPoint, Bits, choose_bits
from secateur.quantization.calibrate import METHODS, Method, choose_ranges, count_values
from secateur.quantization.equalize import equalize
from secateur.quantization.histogram import Histogram, Range
from secateur.quantization.pricing import highest_price, scheme_by_price
from secateur.quantization.rounding import recover
from secateur.quantization.scheme import Rules, Scheme, make_scheme
from secateur.quantization.simulate import Simulated
from secateur.quantization.validation import Validation
from secateur.quantization.weights import WeightRule
from secateur.training.evaluation import Scorer

_BATCH = 64
MEMORY = 2**26
"""Largest number of elements of an activation while layers are rounded in turn."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized graph and the choices behind it.

    Attributes:
        model: The rounded float graph, after padding and optional equalization.
        ranges: Ranges of the activations.
        rules: Rules of the weights.
        scheme: The quantization scheme.
        chosen: Choices made by measurement, with the measurements, as plain data.
    """

    model: onnx.ModelProto
    ranges: dict[str, Range]
    rules: Rules
    scheme: Scheme
    chosen: dict[str, Any] = field(default_factory=dict)


class Calibration(Protocol):
    """Prepared images that can be read in parts, such as a tensor."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, part: slice, /) -> Tensor:
        """The images of ``part``, float32 (n, C, H, W), on the CPU."""


Run = Callable[[onnx.ModelProto, Scheme | None], Scorer]
"""Makes a runnable network from a float graph and a scheme; None for the float network."""


@dataclass(frozen=True, eq=False)
class Resources:
    """Resources for choices: validation and memory.

    Attributes:
        validation: Evaluates ``auto`` choices. Without it, ``auto`` rounds to nearest and does not
            correct biases.
        run: Makes the networks that ``validation`` evaluates.
        counted: Number of images whose values are counted for ranges other than ``minmax``; None
            for all.
        memory: Largest number of elements of an activation while layers are rounded in turn; 0 if
            the graph cannot be simulated, which rounds to nearest.
    """

    validation: Validation | None = None
    run: Run = Simulated
    counted: int | None = None
    memory: int = MEMORY


def quantize_graph(
    graph: onnx.ModelProto,
    images: Calibration,
    config: recipe.Quantize,
    resources: Resources | None = None,
    points: Sequence[BitPoint] = (),
) -> Quantized:
    """Quantize a float graph without training.

    Args:
        graph: Result of :func:`secateur.onnx_ir.export.export_onnx` or
            :func:`secateur.quantization.importing.import_onnx`.
        images: Prepared training images, float32 (N, C, H, W); no labels are needed.
        config: Options of the recipe.
        resources: Validation images and memory.
        points: Result of :func:`secateur.quantization.bits.scan_bits`, for mixed bits.

    Raises:
        ValueError: An ``auto`` choice has no validation, or mixed bits have no scan.
        DataError: There are no images, or all their pixels are the same.
        SecateurError: Activations are not finite, or the graph cannot be quantized.
    """
    model = pad_widths(graph, config.block)
    model = equalize(model) if config.equalize else model
    return _PostTraining(model, images, config, resources or Resources(), points).quantized()


@dataclass(frozen=True, eq=False)
class _PostTraining:
    """One quantization: arguments of :func:`quantize_graph`, and a method for each step."""

    model: onnx.ModelProto
    images: Calibration
    config: recipe.Quantize
    resources: Resources
    points: Sequence[BitPoint]

    def __post_init__(self) -> None:
        config = self.config
        mixed = config.bits == "mixed"
        chooses = "auto" in (config.method, config.price) or (mixed and config.size is None)
        if (chooses and self.resources.validation is None) or (mixed and not self.points):
            raise ValueError(
                "the recipe leaves a choice open: give validation images, and a scan of mixed bits"
            )

    def quantized(self) -> Quantized:
        config, chosen = self.config, dict[str, Any]()
        histograms = self._count()
        method: Method = config.method if config.method != "auto" else "minmax"
        rules = _rules(config, {})
        if config.method == "auto":
            method, chosen["method_loss"] = self._best_method(histograms, rules)
            chosen["method"] = method
        ranges = choose_ranges(histograms, method, config.percentile)
        if config.bits == "mixed":
            rules = _rules(config, self._mixed_bits(ranges))
            chosen["bits"] = {name: rule.bits for name, rule in rules.items() if name}
        nearest = make_scheme(self.model, ranges, rules)
        if config.price:
            scheme, chosen["price"] = self._priced(nearest, rules)
        else:
            scheme, chosen["recovery"] = self._recovered(nearest, rules)
        return Quantized(self.model, ranges, rules, scheme, chosen)

    def _count(self) -> dict[str, Histogram]:
        starts = range(0, len(self.images), _BATCH)
        batches = (self.images[start : start + _BATCH].numpy() for start in starts)
        counted = 0 if self.config.method == "minmax" else self.resources.counted
        return count_values(self.model, batches, counted)

    def _network(self, scheme: Scheme | None = None) -> Scorer:
        return self.resources.run(self.model, scheme)

    def _best_method(
        self, histograms: dict[str, Histogram], rules: Rules
    ) -> tuple[Method, dict[str, float]]:
        assert self.resources.validation is not None
        losses: dict[Method, float] = {}
        for method in METHODS:
            ranges = choose_ranges(histograms, method, self.config.percentile)
            network = self._network(make_scheme(self.model, ranges, rules))
            losses[method] = self.resources.validation.loss(network)
        best = min(losses, key=losses.__getitem__)
        say(f"quantize: {best} ranges lose least on validation, {losses[best]:.4f} nats")
        return best, {str(name): loss for name, loss in losses.items()}

    def _mixed_bits(self, ranges: dict[str, Range]) -> Bits:
        config, validation = self.config, self.resources.validation
        if config.size is not None or validation is None:
            return choose_bits(self.points, size=config.size)
        needed = validation.accuracy(self._network()) - config.tolerance / 100

        def acceptable(bits: Bits) -> bool:
            scheme = make_scheme(self.model, ranges, _rules(config, bits))
            return validation.accuracy(self._network(scheme)) >= needed

        return choose_bits(self.points, acceptable=acceptable)

    def _priced(self, nearest: Scheme, rules: Rules) -> tuple[Scheme, dict[str, Any]]:
        """Return the scheme at the recipe's price, and the prices tried."""
        config = self.config
        corrected = config.correct_bias is not False
        scheme_at = scheme_by_price(self.model, nearest, rules, self._images_that_fit(), corrected)
        if config.price == "auto":
            validation = self.resources.validation
            assert validation is not None
            return highest_price(
                self._network, nearest, scheme_at, validation, config.tolerance / 100
            )
        return scheme_at(config.price), {"price": config.price}

    def _recovered(self, nearest: Scheme, rules: Rules) -> tuple[Scheme, dict[str, float]]:
        """Return the scheme with the smallest loss among allowed ones, and the loss of each."""
        schemes, ways = {}, _ways(self.config, rules)
        if not self.resources.memory and len(ways) > 1:
            ways = ways[:1]
        images = self._images_that_fit() if any(map(any, ways)) else None
        for adaptive, correct in ways:
            name = ("adaptive" if adaptive else "nearest") + (
                ", biases corrected" if correct else ""
            )
            schemes[name] = nearest
            if images is not None and (adaptive or correct):
                with progress(f"round: {name}", len(nearest.layers)) as tick:
                    schemes[name] = recover(
                        self.model, nearest, images, rules,
                        adaptive=adaptive, correct_bias=correct, advance=tick.advance,
                    )  # fmt: skip
        validation = self.resources.validation
        if len(schemes) == 1 or validation is None:
            return next(iter(schemes.values())), {}
        losses = {name: validation.loss(self._network(each)) for name, each in schemes.items()}
        best = min(losses, key=losses.__getitem__)
        say(f"quantize: rounding {best} loses least on validation, {losses[best]:.4f} nats")
        return schemes[best], losses

    @torch.no_grad()
    def _images_that_fit(self) -> Tensor:
        """The images that fit into memory at once, by the largest activation."""
        network = Simulated(self.model)
        values = network.start(self.images[:1])
        largest = max(max(v.numel() for v in values.values()) for _ in network.walk(values))
        memory = self.resources.memory or MEMORY
        return self.images[: int(np.clip(memory // largest, 1, len(self.images)))]


def _ways(config: recipe.Quantize, rules: Rules) -> list[tuple[bool, bool]]:
    """Yield allowed combinations of adaptive rounding and bias correction."""
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
