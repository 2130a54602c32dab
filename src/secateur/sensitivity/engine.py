"""Levels of a scan, and the eager engine: mask the weights and run the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from secateur.data import Images, Preparation
from secateur.errors import SecateurError
from secateur.pruning.channels import Group
from secateur.pruning.masks import Masks, group_masks
from secateur.training.evaluation import correctness

Bools = npt.NDArray[np.bool_]
Progress = Callable[[int], None]
"""Called with the number of further finished levels."""


@dataclass(frozen=True, eq=False)
class Level:
    """One masked version of a network.

    Attributes:
        layer: The pruned group or linear layer, or ``network``.
        fraction: Fraction to prune.
        groups: Groups with whether each unit is masked, shape (units,).
        weights: Linear layers pruned by single weights, with a bool mask of kept ones.
    """

    layer: str
    fraction: float
    groups: Sequence[tuple[Group, Bools]] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def masks(self, model: nn.Module) -> Masks:
        """Return the level as masks of ``model``."""
        tensors = {f"{name}.weight": kept.cpu() for name, kept in self.weights.items()}
        for group, masked in self.groups:
            for name, mask in group_masks(model, group, masked).tensors.items():
                tensors[name] = tensors[name] & mask if name in tensors else mask
        return Masks(tensors)

    def zeros(self, model: nn.Module) -> float:
        """Fraction of zeros among the weights that produce the pruned channels, in [0, 1]."""
        produced = {m.axis.tensor for group, _ in self.groups for m in group.makers()}
        names = produced | {f"{name}.weight" for name in self.weights}
        # Only the counted members are masked, because masks of all members take time.
        groups = [
            (replace(g, members=tuple(m for m in g.members if m.axis.tensor in names)), masked)
            for g, masked in self.groups
        ]
        masks = replace(self, groups=groups).masks(model).tensors
        entries = kept = 0
        for name in names:
            weight = model.get_parameter(name).detach()
            entries += weight.numel()
            kept += int((weight.ne(0) & masks[name].to(weight.device)).count_nonzero())
        return 1 - kept / entries if entries else 0.0


class Engine(Protocol):
    """Evaluates masked versions of one network."""

    def correct(
        self,
        levels: Sequence[Level],
        images: Images,
        prepare: Preparation,
        progress: Progress | None = None,
    ) -> Bools:
        """Return for each level and image whether the class with the highest score is the label.

        Args:
            levels: L levels of the engine's network.
            images: N images.
            prepare: Maps stored pixels to the network's input.
            progress: Reports progress.

        Returns:
            Shape (L, N).
        """


class EagerEngine:
    """Runs the entire network for each level, on any device; the reference of other engines.

    Args:
        model: Restored bit for bit.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def correct(
        self,
        levels: Sequence[Level],
        images: Images,
        prepare: Preparation,
        progress: Progress | None = None,
    ) -> Bools:
        """Evaluate ``levels`` one after another; see :meth:`Engine.correct`.

        Raises:
            SecateurError: Masks were not in force after the evaluation.
        """
        right = []
        for level in levels:
            with masked(self._model, level):
                right.append(correctness(self._model, images, prepare))
            if progress is not None:
                progress(1)
        return np.stack(right)


@contextmanager
def masked(model: nn.Module, level: Level) -> Iterator[None]:
    """Mask ``model`` in place during the block, then restore it bit for bit.

    Raises:
        SecateurError: Masks were not in force after the block.
    """
    tensors = [*model.parameters(), *model.buffers()]
    copies = [tensor.detach().clone() for tensor in tensors]
    masks = level.masks(model)
    try:
        masks.apply_(model)
        yield
        # Scans with masks that are not applied give flat curves.
        if not masks.in_force(model):
            raise SecateurError(
                "masks were not in force during evaluation",
                where=f"scan of {level.layer} at {level.fraction:g}",
                expected="masked weights at zero",
                found="masked weights that are not",
            )
    finally:
        with torch.no_grad():
            for tensor, saved in zip(tensors, copies, strict=True):
                tensor.copy_(saved)
