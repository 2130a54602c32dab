"""The geometry of each layer call of a network, for any widths of groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from secateur.benchmarking.layer_timer import Layer
from secateur.pruning.channels import Prunable
from secateur.pruning.tracing.channel_graph import Axis
from secateur.pruning.tracing.probe import Example, call_for_shapes, first_names, weightless

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Attributes:
        weight: First name of the layer's weight.
        layer: Geometry at full width.
    """

    weight: str
    layer: Layer


class Geometry:
    """The convolutions and linear layers of a network, in the order of execution.

    Transposed and functional convolutions are not included.

    Args:
        model: Any network; not modified.
        prunable: Removable channels of the same network.

    Attributes:
        calls: Every call, for one image.
        touched: For each group, the calls with its channels as outputs or inputs.
    """

    def __init__(self, model: nn.Module, prunable: Prunable) -> None:
        self.calls = list_calls(model, prunable.example)
        self._within = prunable.graph.within
        self._steps = {group.name: group.steps for group in prunable.groups}
        self._parts: dict[Axis, list[tuple[str, int]]] = {}
        for group in prunable.groups:
            for member in group.members:
                part = group.name, len(member.index)
                self._parts.setdefault(member.axis, []).append(part)
        self.touched: dict[str, list[int]] = {name: [] for name in self._steps}
        for number, layer_call in enumerate(self.calls):
            axes = [Axis(layer_call.weight, 0), Axis(layer_call.weight, 1)]
            for name in {name for axis in axes for name, _ in self._parts.get(axis, [])}:
                self.touched[name].append(number)

    def layer(self, number: int, widths: Mapping[str, int]) -> Layer:
        """Geometry of call ``number`` with ``widths`` steps of each group, else the full width."""
        layer_call = self.calls[number]
        full = layer_call.layer
        outputs = self._size(Axis(layer_call.weight, 0), full.outputs, widths)
        read = self._size(Axis(layer_call.weight, 1), full.inputs // full.groups, widths)
        groups = full.groups
        if groups > 1 and layer_call.weight not in self._within:
            groups = groups * outputs // full.outputs
        return replace(full, inputs=read * groups, outputs=outputs, groups=groups)

    def layers(self, widths: Mapping[str, int], among: Iterable[int] | None = None) -> list[Layer]:
        """All calls, or those ``among``, at ``widths``."""
        numbers = range(len(self.calls)) if among is None else among
        return [self.layer(number, widths) for number in numbers]

    def _size(self, axis: Axis, full: int, widths: Mapping[str, int]) -> int:
        removed = 0
        for name, many in self._parts.get(axis, []):
            steps = self._steps[name]
            removed += many * (steps - widths.get(name, steps)) // steps
        return full - removed


def list_calls(model: nn.Module, example: Example) -> list[Call]:
    """List the calls of convolutions and linear layers of ``model`` on ``example`` at inference.

    Args:
        model: Not modified; a copy without data runs.
        example: One input on the meta device.
    """
    probe = weightless(model).eval()
    first = first_names(probe)
    names = {module: name for name, module in probe.named_modules()}
    calls: list[Call] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = f"{names[module]}.weight"
        calls.append(Call(first.get(weight, weight), _layer(module, inputs[0])))

    for module in probe.modules():
        if isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            module.register_forward_hook(note)
    call_for_shapes(probe, example)
    return calls


def _layer(module: nn.Module, images: Tensor) -> Layer:
    if isinstance(module, nn.Linear):
        rows = images.numel() // module.in_features
        return Layer("linear", module.in_features, module.out_features, 1, (rows,))
    assert isinstance(module, _CONVOLUTIONS)
    rank = len(module.kernel_size)
    return Layer(
        "conv",
        module.in_channels,
        module.out_channels,
        module.groups,
        tuple(images.shape[-rank:]),
        tuple(module.kernel_size),
        tuple(module.stride),
        tuple(module.dilation),
        _pads(module),
    )


def _pads(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        total = reach if module.padding == "same" else [0] * len(reach)
        return (*(each // 2 for each in total), *(each - each // 2 for each in total))
    return (*module.padding, *module.padding)
