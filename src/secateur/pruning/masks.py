"""Masks of kept weights: of a plan, of some units of a group, or by magnitude."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import NetworkError, StoreError
from secateur.pruning.channels import Group
from secateur.pruning.importance import weight_importance
from secateur.pruning.plan import Plan
from secateur.pruning.tracing.channel_graph import INPUTS, Axis
from secateur.store import save_tensors


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of the kept entries of each pruned parameter.

    Attributes:
        tensors: From parameter name to a bool tensor of its shape, True where kept; do not modify.

    Raises:
        NetworkError: A mask is not boolean.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, mask in self.tensors.items():
            if mask.dtype != torch.bool:
                raise NetworkError(
                    "mask does not fit", where=name, expected=torch.bool, found=mask.dtype
                )
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Zero every masked entry of ``model`` in place.

        Raises:
            NetworkError: A mask has no parameter of its name and shape.
        """
        for parameter, mask in self._pairs(model):
            parameter.masked_fill_(~mask, 0)

    @torch.no_grad()
    def in_force(self, model: nn.Module) -> bool:
        """Whether every masked entry of ``model`` is exactly zero.

        Raises:
            NetworkError: A mask has no parameter of its name and shape.
        """
        return not any(
            bool(parameter.masked_fill(mask, 0).count_nonzero())
            for parameter, mask in self._pairs(model)
        )

    def shrinks(self, previous: Masks) -> bool:
        """Whether everything masked by ``previous`` is masked here too."""
        return all(
            name in self.tensors
            and not bool((self.tensors[name] & ~mask.to(self.tensors[name].device)).any())
            for name, mask in previous.tensors.items()
        )

    def sparsity(self) -> float:
        """Fraction of masked entries, in [0, 1)."""
        entries = sum(mask.numel() for mask in self.tensors.values())
        kept = sum(int(mask.count_nonzero()) for mask in self.tensors.values())
        return 1 - kept / entries if entries else 0.0

    def save(self, path: Path) -> None:
        """Write the masks as safetensors."""
        save_tensors(path, self.tensors)

    @classmethod
    def load(cls, path: Path) -> Masks:
        """Read the file of :meth:`save`, onto the CPU.

        Raises:
            StoreError: The file is missing or damaged.
        """
        try:
            return cls(load_file(path))
        except (OSError, SafetensorError) as error:
            raise StoreError("cannot read masks", where=path, found=error) from error

    def _pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        parameters = dict(model.named_parameters())
        for name, mask in self.tensors.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise NetworkError(
                    "mask does not fit",
                    where=name,
                    expected=tuple(parameters[name].shape) if name in parameters else "a parameter",
                    found=tuple(mask.shape) if name in parameters else "none of that name",
                )
            yield parameters[name], mask.to(parameters[name].device)


def plan_masks(model: nn.Module, plan: Plan) -> Masks:
    """Masks of all weights that produce or read a channel that ``plan`` removes.

    Readers are masked too, so that activation functions with f(0) != 0 do not matter. Running
    statistics have no masks. All parameters of removed blocks are masked.

    Raises:
        NetworkError: The plan does not fit the network.
    """
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for axis, keep in plan.keeps().items():
        if axis.tensor in parameters:
            kept = torch.zeros(parameters[axis.tensor].shape[axis.axis], dtype=torch.bool)
            kept[list(keep)] = True
            _narrow(tensors, parameters[axis.tensor], axis, kept)
    for name, parameter in parameters.items():
        if plan.removes(name):
            tensors[name] = torch.zeros(parameter.shape, dtype=torch.bool)
    return Masks(tensors)


def group_masks(model: nn.Module, group: Group, removed: npt.NDArray[np.bool_]) -> Masks:
    """Masks of all entries of some units of a group.

    Args:
        model: Any network; not modified.
        group: A group of the network.
        removed: Whether each unit is masked, shape (units,).
    """
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for member in group.members:
        if member.axis.axis != INPUTS and member.axis.tensor in parameters:
            parameter = parameters[member.axis.tensor]
            kept = torch.ones(parameter.shape[member.axis.axis], dtype=torch.bool)
            kept[member.index[removed[member.unit]]] = False
            _narrow(tensors, parameter, member.axis, kept)
    return Masks(tensors)


def _narrow(tensors: dict[str, Tensor], parameter: Tensor, axis: Axis, kept: Tensor) -> None:
    shape = [-1 if d == axis.axis else 1 for d in range(parameter.ndim)]
    before = tensors.get(axis.tensor, torch.tensor(True))
    tensors[axis.tensor] = (before & kept.view(shape)).expand(parameter.shape).contiguous()


def weight_masks(
    model: nn.Module,
    layers: Iterable[str],
    fraction: float,
    previous: Masks | None = None,
) -> Masks:
    """Mask the single weights of smallest magnitude, in each layer separately.

    Exactly ``floor(fraction * n)`` of n weights are masked, ties by index; at least one is kept.
    Weights masked by ``previous`` are masked first. Biases have no masks.

    Args:
        model: Any network; not modified.
        layers: Names of modules with a ``weight``.
        fraction: Fraction to mask, in [0, 1).
        previous: Masks of the preceding round.

    Raises:
        NetworkError: Weights are not finite.
        ValueError: The fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), found {fraction}")
    before = {} if previous is None else previous.tensors
    tensors = {}
    for layer in layers:
        name = f"{layer}.weight"
        scores = weight_importance(model.get_parameter(name))
        remaining = scores.numel() - _count_removed(fraction, scores.numel())
        tensors[name] = _keep_largest(scores, remaining, before.get(name))
    return Masks(tensors)


@torch.no_grad()
def sparsity(model: nn.Module, names: Iterable[str]) -> float:
    """Fraction of zeros among the parameters called ``names``, in [0, 1]."""
    parameters = [model.get_parameter(name) for name in names]
    entries = sum(parameter.numel() for parameter in parameters)
    return 1 - sum(int(parameter.count_nonzero()) for parameter in parameters) / entries


def _count_removed(fraction: float, entries: int) -> int:
    # 0.29 * 100 is 28.999999999999996 in floating point; 29 is meant.
    return min(entries - 1, math.floor(fraction * entries + 1e-9 * entries))


def _keep_largest(scores: Tensor, remaining: int, kept: Tensor | None) -> Tensor:
    """Mask of at most ``remaining`` entries of ``kept``: the largest, and the last of equal ones.

    Args:
        scores: Non-negative, any shape; overwritten.
        remaining: 1 or more.
        kept: Bool, of the same shape, or None for all.
    """
    if kept is not None:
        kept = kept.to(scores.device)
        remaining = min(remaining, int(kept.count_nonzero()))
        scores.masked_fill_(~kept, -1)
    removed = scores.numel() - remaining
    if removed == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = scores.flatten().kthvalue(removed).values
    if not math.isfinite(limit.item()):
        raise NetworkError("weights are not finite numbers", found=limit.item())
    masked = (scores < limit).flatten()
    ties = (scores.flatten() == limit).nonzero().flatten()
    masked[ties[: removed - int(masked.count_nonzero())]] = True
    return ~masked.view(scores.shape)
