"""Parameters or multiply-accumulates of a network in given widths, without running it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from secateur.pruning.channels import Prunable
from secateur.pruning.plan import Plan
from secateur.pruning.tracing.channel_graph import INPUTS, Axis
from secateur.pruning.tracing.probe import call_for_shapes, first_names, weightless, with_values

Counted = Literal["macs", "parameters"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


class Costs:
    """Sum over tensors of their elements times the number of uses of each element.

    For ``macs``, the uses are the positions to which a layer's weight is applied, as in
    :func:`secateur.benchmarking.cost.macs`; for ``parameters``, one.

    Args:
        model: Any network; not modified.
        prunable: Removable channels of the same network.
        objective: ``macs`` or ``parameters``.
    """

    def __init__(self, model: nn.Module, prunable: Prunable, objective: Counted) -> None:
        self._prunable = prunable
        probe = with_values(model) if prunable.values else weightless(model)
        self._shapes = {name: tuple(p.shape) for name, p in probe.named_parameters()}
        self._times = dict.fromkeys(self._shapes, 1)
        if objective == "macs":
            self._times = _positions(probe.eval(), prunable)
        self._cut: dict[str, list[Axis]] = {}
        for axis in prunable.graph.sizes:
            self._cut.setdefault(axis.tensor, []).append(axis)
        self._parts: dict[Axis, list[tuple[str, int]]] = {}
        for group in prunable.groups:
            for member in group.members:
                if member.axis.axis != INPUTS:
                    part = group.name, len(member.index)
                    self._parts.setdefault(member.axis, []).append(part)
        self._steps = {group.name: group.steps for group in prunable.groups}

    @property
    def full(self) -> int:
        """Cost of the unpruned network."""
        return self._sum({})

    def at(self, widths: Mapping[str, int]) -> int:
        """Cost with ``widths`` steps of each group."""
        sizes = {}
        for axis, parts in self._parts.items():
            if axis.tensor in self._shapes:
                removed = sum(
                    many
                    * (self._steps[name] - widths.get(name, self._steps[name]))
                    // self._steps[name]
                    for name, many in parts
                )
                sizes[axis] = self._shapes[axis.tensor][axis.axis] - removed
        return self._sum(sizes)

    def of(self, plan: Plan) -> int:
        """Cost after a removal."""
        return self._sum({axis: len(keep) for axis, keep in plan.keeps().items()})

    def _sum(self, sizes: Mapping[Axis, int]) -> int:
        total = 0
        for name, times in self._times.items():
            shape = list(self._shapes[name])
            for axis in self._cut.get(name, ()):
                if axis in sizes:
                    shape[axis.axis] = sizes[axis]
            total += times * math.prod(shape)
        return total


def _positions(probe: nn.Module, prunable: Prunable) -> dict[str, int]:
    """For each layer's weight, the number of positions of one input to which it is applied."""
    first = first_names(probe)
    names = {module: name for name, module in probe.named_modules()}
    times: dict[str, int] = {}

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        path = f"{names[layer]}.weight" if names[layer] else "weight"
        if isinstance(layer, nn.Linear):
            positions = output.numel() // output.shape[-1]
        elif isinstance(layer, _TRANSPOSED):
            positions = inputs[0].numel() // layer.in_channels
        else:
            positions = output.numel() // layer.out_channels
        if path in first:
            times[first[path]] = times.get(first[path], 0) + positions

    hooks = [m.register_forward_hook(count) for m in names if isinstance(m, _LAYERS)]
    call_for_shapes(probe, prunable.example)
    for hook in hooks:
        hook.remove()
    return times
