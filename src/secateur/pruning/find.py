"""Finds the removable channels of a network: traces it, then tries it at half its width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import nn

from secateur.pruning.adapt import is_depthwise
from secateur.pruning.channels import Group, Prunable
from secateur.pruning.realize import ChannelsDoNotFit, WidthsRejected, realize_exactly
from secateur.pruning.tracing.probe import Example, example_of, first_names, weightless, with_values
from secateur.pruning.tracing.trace import ValuesNeededError, follow_channels
from secateur.pruning.units import protected_layers, units_of


def find_prunable(
    model: nn.Module,
    example_input: Example,
    *,
    heads: bool = False,
    grouped: Literal["groups", "width"] = "groups",
) -> Prunable:
    """Find the removable channels of ``model`` by running it in inference mode on the meta device.

    The network is run again with every group at half its width. Groups for which its code fails,
    for example because forward contains a fixed width, are protected with the reason. If forward
    depends on values of tensors, a copy with weights runs on the example itself;
    :attr:`Prunable.values` is then set.

    Args:
        model: Any network; not modified.
        example_input: Arguments of forward: a batch, (N, C, H, W), or a tuple or dict of arguments.
            Shape and dtype of one element of the batch are used.
        heads: Whether attentions lose entire heads, instead of channels within each head.
        grouped: Whether grouped convolutions lose entire ``groups``, or the same channels of each
            group (``width``). A convolution for which one is impossible loses the other.

    Raises:
        NetworkError: Forward does not run on the input, or the network is scripted or quantized.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> images = torch.zeros(1, 3, 8, 8)
        >>> prunable = secateur.find_prunable(network, images)
        >>> [(group.name, group.channels) for group in prunable.groups]
        [('0', 16)]
        >>> [(layer.name, layer.reason) for layer in prunable.protected]
        [('2', "they are the network's output")]
    """
    empty = _follow(model, example_input, heads, frozenset())
    every = _grouped_weights(empty)
    if grouped == "width" and every:
        by_width = _find(model, _follow(model, example_input, heads, every))
        if not (stuck := _stuck(by_width)):
            return by_width
        better = stuck - _stuck(_find(model, empty))  # by groups
        if not better:
            return by_width
        return _find(model, _follow(model, example_input, heads, every - better))
    by_groups = _find(model, empty)
    if not (stuck := _stuck(by_groups)):
        return by_groups
    mixed = _find(model, _follow(model, example_input, heads, stuck))
    return mixed if _removable(mixed) > _removable(by_groups) else by_groups


def _grouped_weights(prunable: Prunable) -> frozenset[str]:
    """Weights of grouped convolutions that are not depthwise."""
    graph = prunable.graph
    return frozenset(axis.tensor for axis in graph.blocks if not is_depthwise(graph, axis))


def _stuck(prunable: Prunable) -> frozenset[str]:
    """Weights of grouped convolutions of which nothing can be removed."""
    removable = {m.axis.tensor for group in prunable.groups for m in group.members
                 if m.axis in prunable.graph.blocks}  # fmt: skip
    return _grouped_weights(prunable) - removable


def _removable(prunable: Prunable) -> int:
    """Number of layer outputs that can be removed."""
    return sum(len(member.index) for group in prunable.groups for member in group.makers())


def _find(model: nn.Module, empty: Prunable) -> Prunable:
    """Find the removable channels of a network that ran, for the convolutions it ran with."""
    prunable = _sort(model, empty, {}, {})
    failing = _failing(model, prunable, _halves(prunable))
    steps = _steps_of(model, prunable, failing, half_fails=True)
    refused = {name: why for name, why in failing.items() if name not in steps}
    if failing:
        prunable = _sort(model, empty, refused, steps)
    coarser = _coarser_steps(model, prunable)
    if coarser:
        prunable = _sort(model, empty, refused, steps | coarser)
    if coarser or len(refused) < len(failing):  # other steps have other halves
        failing = _failing(model, prunable, _halves(prunable))
        prunable = _sort(model, empty, refused | failing, steps | coarser)
    return prunable


def _halves(prunable: Prunable) -> dict[str, int]:
    return {group.name: group.width(0.5) for group in prunable.groups}


def _follow(
    model: nn.Module, example_input: Example, heads: bool, within: frozenset[str]
) -> Prunable:
    """Run the network, without data if possible; return the graph before grouping."""
    try:
        example, values = example_of(example_input), False
        graph = follow_channels(weightless(model), example, None, heads, within)
    except ValuesNeededError:
        example, values = example_of(example_input, values=True), True
        graph = follow_channels(with_values(model), example, None, heads, within)
    for home, uses in graph.attributes.items():
        nodes = [nodes for use in uses for nodes in use.slices]
        if len({np.concatenate(use.slices).tobytes() for use in uses}) > 1:
            graph.couple(np.concatenate(nodes), f"the number {home}")
    return Prunable((), (), tuple(graph.unfollowed), example, graph, values)


def _coarser_steps(model: nn.Module, prunable: Prunable) -> dict[str, int]:
    """Steps of evenly shrinking groups for which those they have are too fine.

    A shuffle in 4 groups needs steps of 4 channels. A group that shrinks only together with others
    keeps its steps.
    """
    even = {group.name: group.steps - 1 for group in prunable.groups if group.balanced}
    return _steps_of(model, prunable, _failing(model, prunable, even))


def _steps_of(
    model: nn.Module, prunable: Prunable, names: Iterable[str], half_fails: bool = False
) -> dict[str, int]:
    """Largest number of steps in which each group can shrink without others, where there is one.

    If steps of some number of channels work, so do multiples of it: a group for which no largest
    step works is not tried further.
    """
    sizes = {name: _step_sizes(prunable.group(name), half_fails) for name in names}
    largest = {
        name: [size for size in each if not any(more % size == 0 for more in each if more > size)]
        for name, each in sizes.items()
    }
    able = _first_working(model, prunable, largest)
    finest = _first_working(model, prunable, {name: sizes[name] for name in able})
    return {name: prunable.group(name).steps // size for name, size in finest.items()}


def _step_sizes(group: Group, half_fails: bool) -> list[int]:
    """Channels that a group may lose at a time, increasing."""
    sizes = range(1, group.steps // 2 + 1) if group.balanced else ()
    without = group.steps if half_fails else 0
    return [size for size in sizes if group.steps % size == 0 and 2 * size != without]


def _first_working(
    model: nn.Module, prunable: Prunable, sizes: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """First of its sizes with which each group alone can lose one step, where there is one.

    If all groups work together, each works alone: one run of the network is enough.
    """
    first: dict[str, int] = {}
    for place in range(max(map(len, sizes.values()), default=0)):
        trial = {
            name: each[place]
            for name, each in sizes.items()
            if name not in first and place < len(each)
        }
        coarser = {name: prunable.group(name).steps // size for name, size in trial.items()}
        groups = tuple(replace(prunable.group(name), steps=n) for name, n in coarser.items())
        tried = replace(prunable, groups=groups)

        def works(names: Iterable[str], tried: Prunable = tried) -> bool:
            widths = {name: tried.group(name).steps - 1 for name in names}
            return _rejection(model, tried, widths) is None

        together = works(trial)
        first |= {name: size for name, size in trial.items() if together or works([name])}
    return first


def _failing(model: nn.Module, prunable: Prunable, widths: Mapping[str, int]) -> dict[str, str]:
    """Groups without which the network works in ``widths``, each with the reason of its failure.

    If the smaller network fails in a module, this is due to a group with entries in that module
    without which the network fails in another one, or not at all.
    """
    wide, failing = dict(widths), {}
    rejection = _rejection(model, prunable, wide)
    while rejection is not None:
        for name in _groups_in(prunable, wide, rejection.where):
            without = {other: width for other, width in wide.items() if other != name}
            after = _rejection(model, prunable, without)
            if after is None or after.where != rejection.where:
                failing[name] = str(rejection)
                wide, rejection = without, after
                break
        else:
            return failing | _failing_separately(model, prunable, wide)
    return failing


def _groups_in(prunable: Prunable, names: Iterable[str], where: str | None) -> list[str]:
    """Groups with entries in a module, or in the smallest module around it that has some."""
    while where:
        inside = [
            name
            for name in names
            if any(f"{m.module}.".startswith(f"{where}.") for m in prunable.group(name).members)
        ]
        if inside:
            return inside
        where = where.rpartition(".")[0]
    return []


def _failing_separately(
    model: nn.Module, prunable: Prunable, widths: Mapping[str, int]
) -> dict[str, str]:
    """Groups that fail separately; if others still fail, those that fail with preceding ones."""
    failing = {}
    for name, width in widths.items():
        rejection = _rejection(model, prunable, {name: width})
        if rejection is not None:
            failing[name] = str(rejection)
    others = {name: width for name, width in widths.items() if name not in failing}
    if _rejection(model, prunable, others) is None:
        return failing
    together: dict[str, int] = {}
    for name, width in others.items():
        rejection = _rejection(model, prunable, together | {name: width})
        if rejection is None:
            together[name] = width
        else:
            failing[name] = str(rejection)
    return failing


def _rejection(
    model: nn.Module, prunable: Prunable, widths: Mapping[str, int]
) -> WidthsRejected | None:
    """Why the network fails in ``widths``, or None if it works."""
    wide = dict(widths)
    if not wide:
        return None
    scores = {name: np.zeros(prunable.group(name).units) for name in wide}
    large = units_of(prunable.graph)
    while True:
        try:
            realize_exactly(model, prunable, large, wide, scores)
        except ChannelsDoNotFit as rejection:  # depends on the width; the network's code runs in it
            if rejection.group not in wide:
                return rejection
            wide = {name: width for name, width in wide.items() if name not in rejection.groups}
        except WidthsRejected as rejection:
            return rejection
        else:
            return None


def _sort(
    model: nn.Module,
    empty: Prunable,
    refused: Mapping[str, str],
    steps: Mapping[str, int],
) -> Prunable:
    units = units_of(empty.graph).copy()
    groups = []
    for group in units.groups():
        if group.name in refused:
            units.refuse(group, refused[group.name])
        else:
            groups.append(replace(group, steps=steps.get(group.name) or group.steps))
    layers = protected_layers(model, first_names(model), units, groups)
    return replace(empty, groups=tuple(groups), protected=tuple(layers))
