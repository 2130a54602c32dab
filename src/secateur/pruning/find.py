"""Finds the removable channels of a network: traces it, then tries it at half its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from secateur.pruning.channels import Group, Prunable, Units, protected_layers, units_of
from secateur.pruning.realize import ChannelsDoNotFit, WidthsRejected, realize_exactly
from secateur.pruning.tracing.trace import (
    Example,
    ValuesNeededError,
    example_of,
    first_names,
    follow_channels,
    weightless,
    with_values,
)


def find_prunable(model: nn.Module, example_input: Example, *, heads: bool = False) -> Prunable:
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
    empty = _follow(model, example_input, heads)
    refused: dict[str, str] = {}
    prunable = _sort(model, empty, refused, {})
    steps = _steps(model, prunable)
    prunable = _sort(model, empty, refused, steps)
    why = _refusal(model, prunable, prunable.groups)
    if why is None:
        return prunable
    for group in prunable.groups:
        alone = _refusal(model, prunable, (group,))
        if alone is not None:
            refused[group.name] = alone
    willing = [group for group in prunable.groups if group.name not in refused]
    if _refusal(model, prunable, willing) is not None:
        refused |= _at_odds(model, prunable, willing)
    return _sort(model, empty, refused, steps)


def _follow(model: nn.Module, example_input: Example, heads: bool) -> Prunable:
    """Run the network, without data if possible; return the graph before grouping."""
    try:
        example, values = example_of(example_input), False
        graph = follow_channels(weightless(model), example, heads=heads)
    except ValuesNeededError:
        example, values = example_of(example_input, values=True), True
        graph = follow_channels(with_values(model), example, heads=heads)
    for (module, attribute), uses in graph.attributes.items():
        nodes = [nodes for use in uses for nodes in use.slices]
        if len({np.concatenate(use.slices).tobytes() for use in uses}) > 1:
            name = f"{module}.{attribute}" if module else attribute
            graph.couple(np.concatenate(nodes), f"the number {name}")
    return Prunable((), (), tuple(graph.unfollowed), example, graph, values, heads)


def _steps(model: nn.Module, prunable: Prunable) -> dict[str, int]:
    """Steps of groups that shrink evenly: a shuffle in 4 groups needs steps of 4 channels."""
    even = [group for group in prunable.groups if group.balanced]
    if _works(model, prunable, even):
        return {group.name: group.steps for group in even}
    return {group.name: _steps_of(model, prunable, group) for group in even}


def _works(model: nn.Module, prunable: Prunable, groups: Sequence[Group]) -> bool:
    """Whether the network runs with all ``groups`` one step narrower."""
    if not groups:
        return True
    widths = {group.name: group.steps - 1 for group in groups}
    scores = {group.name: np.zeros(group.units) for group in groups}
    narrower = replace(prunable, groups=tuple(groups))
    try:
        realize_exactly(model, narrower, units_of(prunable.graph), widths, scores)
    except WidthsRejected as why:
        return why.group is not None
    return True


def _steps_of(model: nn.Module, prunable: Prunable, group: Group) -> int:
    for size in range(1, group.steps // 2 + 1):
        if group.steps % size == 0:
            coarser = replace(group, steps=group.steps // size)
            if _works(model, prunable, (coarser,)):
                return coarser.steps
    return group.steps


def _at_odds(model: nn.Module, prunable: Prunable, groups: list[Group]) -> dict[str, str]:
    """Groups that can shrink separately, but not together with preceding ones."""
    together: list[Group] = []
    refused: dict[str, str] = {}
    for group in groups:
        why = _refusal(model, prunable, [*together, group])
        if why is None:
            together.append(group)
        else:
            refused[group.name] = why
    return refused


def _refusal(model: nn.Module, prunable: Prunable, groups: Sequence[Group]) -> str | None:
    """Why the network fails with ``groups`` at half their width, or None if it works."""
    widths = {group.name: group.width(0.5) for group in groups}
    scores = {group.name: np.zeros(group.units) for group in groups}
    large = units_of(prunable.graph)
    while True:
        try:
            realize_exactly(model, prunable, large, widths, scores)
        except ChannelsDoNotFit as finding:  # depends on the width; the network's code runs in it
            if finding.group not in widths:
                return str(finding)
            del widths[finding.group]
        except WidthsRejected as why:
            return str(why)
        else:
            return None


def _sort(
    model: nn.Module,
    empty: Prunable,
    refused: Mapping[str, str],
    steps: Mapping[str, int],
) -> Prunable:
    units = Units(empty.graph)
    groups = []
    for group in units.groups():
        if group.name in refused:
            units.refuse(group, refused[group.name])
        else:
            groups.append(replace(group, steps=steps.get(group.name, group.steps)))
    layers = protected_layers(model, first_names(model), units, groups)
    return replace(empty, groups=tuple(groups), protected=tuple(layers))
