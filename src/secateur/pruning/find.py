"""What can be taken out of a network: followed once as it is, and tried once at half its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from secateur.pruning.channels import Group, Prunable, Units, protected_layers
from secateur.pruning.realize import NoRoom, Unsuited, arrange, arrange_exactly
from secateur.pruning.tracing.channel_graph import Wiring
from secateur.pruning.tracing.trace import example_of, first_names, follow_channels, weightless


def find_prunable(model: nn.Module, example_input: Tensor) -> Prunable:
    """Find what can be taken out of ``model``, by running it in inference mode without data.

    What the network's own code does not allow (a width written into its forward, say) shows when it
    is run again with every group at half its width; such groups are protected, with the reason.

    Args:
        model: Any network; left as it is.
        example_input: A batch of the shape to run on, (N, C, H, W); only shape and dtype count.

    Raises:
        NetworkError: Forward looks at values, or does not run on the input's shape.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> images = torch.zeros(1, 3, 8, 8)
        >>> prunable = secateur.find_prunable(network, images)
        >>> [(group.name, group.channels) for group in prunable.groups]
        [('0', 16)]
        >>> [(layer.name, layer.reason) for layer in prunable.protected]
        [('2', "they are the network's output")]
    """
    example = example_of(example_input)
    wiring = follow_channels(weightless(model), example)
    refused: dict[str, str] = {}
    found = _sort(model, wiring, example, refused, {})
    steps = {group.name: _steps(model, found, group) for group in found.groups if group.balanced}
    found = _sort(model, wiring, example, refused, steps)
    why = _refusal(model, found, found.groups)
    if why is None:
        return found
    for group in found.groups:
        alone = _refusal(model, found, (group,))
        if alone is not None:
            refused[group.name] = alone
    willing = [group for group in found.groups if group.name not in refused]
    if _refusal(model, found, willing) is not None:
        refused |= _at_odds(model, found, willing)
    return _sort(model, wiring, example, refused, steps)


def _steps(model: nn.Module, found: Prunable, group: Group) -> int:
    """In how many steps the network runs: a channel shuffle in 4 groups needs 4 at a time."""
    for size in range(1, group.steps // 2 + 1):
        if group.steps % size == 0:
            coarser = replace(group, steps=group.steps // size)
            widths = {group.name: coarser.steps - 1}
            scores = {group.name: np.zeros(group.units)}
            try:
                arrange(model, replace(found, groups=(coarser,)), widths, scores)
            except Unsuited as why:
                if why.group is None:
                    continue
            return coarser.steps
    return group.steps


def _at_odds(model: nn.Module, found: Prunable, groups: list[Group]) -> dict[str, str]:
    """Groups that can shrink alone, but not together with those before them."""
    together: list[Group] = []
    refused: dict[str, str] = {}
    for group in groups:
        why = _refusal(model, found, [*together, group])
        if why is None:
            together.append(group)
        else:
            refused[group.name] = why
    return refused


def _refusal(model: nn.Module, found: Prunable, groups: Sequence[Group]) -> str | None:
    """Why the network does not work with ``groups`` at half their width, or None where it does."""
    widths = {group.name: group.width(0.5) for group in groups}
    scores = {group.name: np.zeros(group.units) for group in groups}
    large = Units(found.wiring)
    while True:
        try:
            arrange_exactly(model, found, large, widths, scores)
        except NoRoom as finding:  # depends on the width; the network's code works in it
            if finding.group not in widths:
                return str(finding)
            del widths[finding.group]
        except Unsuited as why:
            return str(why)
        else:
            return None


def _sort(
    model: nn.Module,
    wiring: Wiring,
    example: Tensor,
    refused: Mapping[str, str],
    steps: Mapping[str, int],
) -> Prunable:
    units = Units(wiring)
    groups = []
    for group in units.groups():
        if group.name in refused:
            units.refuse(group, refused[group.name])
        else:
            groups.append(replace(group, steps=steps.get(group.name, group.steps)))
    layers = protected_layers(model, first_names(model), units, groups)
    return Prunable(tuple(groups), tuple(layers), tuple(wiring.unfollowed), example, wiring)
