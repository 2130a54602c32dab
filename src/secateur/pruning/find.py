"""What can be taken out of a network: followed once as it is, and tried once at half its width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from secateur.pruning.arrange import Unsuited, arrange
from secateur.pruning.channels import Group, Prunable, Units, protected_layers
from secateur.pruning.trace import example_of, first_names, follow_channels, weightless
from secateur.pruning.wiring import Wiring


def find_prunable(model: nn.Module, example_input: Tensor) -> Prunable:
    """Find what can be taken out of ``model``, by running it in inference mode without data.

    What the network's own code does not allow (a width written into its forward, say) shows when it
    is run again with every group at half its width; such groups are protected, with the reason.

    Args:
        model: Any network; left as it is.
        example_input: A batch of the shape to run on, (N, C, H, W); only shape and dtype count.

    Raises:
        NetworkError: Forward looks at values, or does not run on the input's shape.
    """
    example = example_of(example_input)
    wiring = follow_channels(weightless(model), example)
    refused: dict[str, str] = {}
    found = _sort(model, wiring, example, refused)
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
    return _sort(model, wiring, example, refused)


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
    try:
        arrange(model, found, widths, scores)
    except Unsuited as why:
        return str(why)
    return None


def _sort(
    model: nn.Module, wiring: Wiring, example: Tensor, refused: dict[str, str]
) -> Prunable:
    units = Units(wiring)
    groups = []
    for group in units.groups():
        if group.name in refused:
            units.refuse(group, refused[group.name])
        else:
            groups.append(group)
    layers = protected_layers(model, first_names(model), units, groups)
    return Prunable(tuple(groups), tuple(layers), tuple(wiring.unfollowed), example, wiring)
