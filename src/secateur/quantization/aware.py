"""Quantization-aware training of weights, biases and step sizes.

Rounding uses the straight-through estimator; the step size has the gradient of Learned Step Size
Quantization (Esser et al. 2020, eq. 3), scaled by 1 / sqrt(values * high) (section 2.2).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from secateur.quantization.affine import UINT8, Affine, from_tensor
from secateur.quantization.scheme import Rules, Scheme, make_layer, rule_of, weighted_nodes
from secateur.quantization.simulate import Simulated
from secateur.quantization.weights import choose_scales, few_digits

_LEAST = 2**-6
"""Smallest step size relative to the initial one: at smaller ones nearly all values are clipped."""

_PRUNED = 0.01
"""A weight with a larger fraction of zeros is taken as pruned, and keeps its zeros."""


class Trainable(Simulated):
    """The quantized graph as a trainable network that can be read back as a scheme.

    Batch-norms are already folded, so that the trained graph is the exported one.

    Args:
        model: The float graph with the initial weights.
        scheme: Scheme of the same graph with the initial scales of activations.
        rules: Rules of weight quantization. For saturation-free 8 bits, integers stay within +-64,
            because pairs of weights cannot be checked during training.
        priced: Names of layers that start from steps and integers of ``scheme`` chosen by pricing;
            zeros stay 0.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        scheme: Scheme,
        rules: Rules,
        priced: Collection[str] = (),
    ) -> None:
        super().__init__(model)
        self._scheme, self._placement = scheme, scheme.placement
        steps: dict[str, Step] = {}
        for group in scheme.placement.groups:
            ceiling = min(scheme.placement.activations.get(name, np.inf) for name in group)
            step = Step(scheme.activations[group[0]], ceiling / UINT8.high)
            self._shared.append(step)
            steps |= dict.fromkeys(group, step)
        self.quantizers: dict[str, Any] = steps
        self._input_steps: dict[str, Step] = {}
        self.weight_steps: Any = nn.ModuleDict()
        for node in weighted_nodes(self.graph):
            weight, rule = self.graph.constant(node.input[1]), rule_of(rules, node.name)
            if node.name in priced:
                layer = scheme.layers[node.name]
                affine = replace(layer.affine, grid=rule.narrow_grid)
                self.weights[node.name].data = torch.from_numpy(layer.weight)
            elif rule.may_saturate:
                affine = from_tensor(weight, rule.narrow_grid, 0 if rule.per_channel else None)
            else:
                affine = choose_scales(weight, rule)
            self.weight_steps[node.name] = Step(affine, coarse=True)
            self._input_steps[node.name] = steps[node.input[0]]
        self.requires_grad_(True)

    def parameters_of(self, name: str) -> tuple[Tensor, Tensor | None]:
        """The rounded weight and bias of node ``name``."""
        weight, bias = super().parameters_of(name)
        step = self.weight_steps[name]
        if bias is not None:
            scale = (self._input_steps[name].bounded() * step.bounded()).detach()
            bias = bias + ((bias / scale).round() * scale - bias).detach()
        return step(weight), bias

    def masks(self) -> dict[str, Tensor]:
        """From parameter name to a mask, True where a weight of a pruned layer is kept."""
        masks = {f"weights.{name}": weight != 0 for name, weight in self.weights.items()}
        return {name: kept for name, kept in masks.items() if (~kept).float().mean() > _PRUNED}

    @torch.no_grad()
    def learned(self) -> Scheme:
        """The learned scheme."""
        activations = {name: step.affine() for name, step in self.quantizers.items()}
        grids = {name: step.affine() for name, step in self.weight_steps.items()}
        layers = {}
        for node in weighted_nodes(self.graph):
            affine, weight = grids[node.name], self.weights[node.name]
            bias = self.biases.get(node.name)
            layers[node.name] = make_layer(
                affine,
                affine.quantize(weight.cpu().contiguous().numpy()),
                None if bias is None else bias.cpu().numpy(),
                activations[node.input[0]].delta,
            )
        return Scheme(self._scheme.placement, activations, layers)


class Step(nn.Module):
    """A quantizer with a learned step size and a fixed zero point.

    Args:
        affine: Initial scale and zero point.
        ceiling: Largest step size, with which a clip can still be absorbed.
        coarse: Whether to round the step size to few digits, as for weights in a file.
    """

    zero_point: Tensor
    least: Tensor

    def __init__(
        self, affine: Affine, ceiling: float = float("inf"), *, coarse: bool = False
    ) -> None:
        super().__init__()
        self._start, self._ceiling, self._coarse = affine, ceiling, coarse
        self.delta = nn.Parameter(torch.tensor(affine.delta))
        self.register_buffer("zero_point", torch.tensor(affine.zero_point, dtype=torch.float32))
        self.register_buffer("least", self.delta.detach() * _LEAST, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded to the grid and back."""
        grid, shape = self._start.grid, [1] * x.ndim
        if self._start.axis is not None:
            shape[self._start.axis] = -1
            values = x.numel() / x.shape[self._start.axis]
        else:
            values = x.numel() / len(x)  # for one image
        scale = (values * grid.high) ** -0.5
        delta, zero = self.bounded().reshape(shape), self.zero_point.reshape(shape)
        return _Round.apply(x, delta, zero, grid.low, grid.high, scale)

    def affine(self) -> Affine:
        """The learned grid."""
        delta = self.bounded().detach().cpu().numpy()
        return Affine(delta, self._start.zero_point, self._start.grid, self._start.axis)

    def bounded(self) -> Tensor:
        """The step size, between its least size and the ceiling, and rounded if coarse."""
        delta = self.delta.maximum(self.least).clamp_max(self._ceiling)
        if not self._coarse:
            return delta
        coarse = torch.from_numpy(few_digits(delta.detach().cpu().numpy())).to(delta.device)
        return delta + (coarse - delta).detach()


class _Round(torch.autograd.Function):
    """D(Q(x)) with gradients for x and the step size."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, zero: Tensor, low: int, high: int, scale: float
    ) -> Tensor:
        steps = x / delta
        rounded = steps.round().add_(zero)
        inside = (rounded >= low) & (rounded <= high)
        rounded.clamp_(low, high).sub_(zero)
        # Derivative of D(Q(x)) by delta: the rounding error inside the range, the bound outside.
        ctx.save_for_backward(inside, torch.where(inside, rounded - steps, rounded))
        ctx.scale, ctx.shape = scale, delta.shape
        return rounded.mul_(delta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, slope = ctx.saved_tensors
        step = (grad * slope).sum_to_size(ctx.shape) * ctx.scale
        return grad * inside, step, None, None, None, None
