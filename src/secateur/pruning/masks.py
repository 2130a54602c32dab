"""Which weights are kept: exact counts, and masks that only shrink from round to round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import NetworkError, StoreError
from secateur.pruning.channels import Group, Prunable
from secateur.pruning.importance import filter_importance, weight_importance
from secateur.store import save_tensors


@dataclass(frozen=True, eq=False)
class Masks:
    """What is kept of each pruned parameter.

    Attributes:
        tensors: Parameter name to a bool tensor of its shape, True where kept; not to be changed.

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
            NetworkError: A mask has no parameter, or not its shape.
        """
        for parameter, mask in self._pairs(model):
            parameter.masked_fill_(~mask, 0)

    @torch.no_grad()
    def in_force(self, model: nn.Module) -> bool:
        """Whether every masked entry of ``model`` is exactly zero.

        Raises:
            NetworkError: A mask has no parameter, or not its shape.
        """
        return not any(
            bool(parameter.masked_fill(mask, 0).count_nonzero())
            for parameter, mask in self._pairs(model)
        )

    def shrinks(self, previous: Masks) -> bool:
        """Whether all that ``previous`` masks is masked here too."""
        return all(
            name in self.tensors
            and not bool((self.tensors[name] & ~mask.to(self.tensors[name].device)).any())
            for name, mask in previous.tensors.items()
        )

    def sparsity(self) -> float:
        """Fraction of the entries that is masked, in [0, 1)."""
        entries = sum(mask.numel() for mask in self.tensors.values())
        kept = sum(int(mask.count_nonzero()) for mask in self.tensors.values())
        return 1 - kept / entries if entries else 0.0

    def save(self, path: Path) -> None:
        """Write the masks as safetensors."""
        save_tensors(path, self.tensors)

    @classmethod
    def load(cls, path: Path) -> Masks:
        """Read what :meth:`save` wrote, onto the CPU.

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


def make_masks(
    model: nn.Module,
    prunable: Prunable,
    fractions: float | Mapping[str, float],
    round_to: int = 1,
    previous: Masks | None = None,
) -> Masks:
    """Mask the smallest filters of each group and the smallest weights of each linear layer.

    Of n filters or weights ``floor(fraction * n)`` go, exactly, ties by index; the filters that
    stay are rounded up to a multiple of ``round_to`` (at most n), and one always stays. What
    ``previous`` masks is masked first, and stays masked.

    A group's mask covers filter and bias of the producer and depthwise convolutions, and scale and
    shift of the batch-norms (unlike in the published code), so that a masked channel is exactly
    zero wherever it is read. Running statistics stay, and so do its readers' weights, which no
    longer matter. Linear layers lose single weights, no biases.

    Args:
        model: Its weights decide; left as it is.
        prunable: Of the same network.
        fractions: In [0, 1): one for all layers, or by layer name with 0 for those left out.
        round_to: 1 or more.
        previous: Masks of the round before.

    Raises:
        NetworkError: A layer name is not prunable.
        ValueError: A fraction is out of range.
    """
    asked = _by_layer(prunable, fractions)
    before = {} if previous is None else previous.tensors
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for group in prunable.groups:
        old = before.get(f"{group.producer}.weight")
        kept = None if old is None else old.flatten(1).any(1)
        stays = group.channels - _gone(asked[group.name], group.channels)
        stays = min(group.channels, math.ceil(stays / round_to) * round_to)
        channels = _keep_largest(filter_importance(model, group), stays, kept)
        for name in group_parameters(model, group):
            like = parameters[name]
            shape = (-1, *[1] * (like.ndim - 1))
            tensors[name] = channels.view(shape).expand_as(like).contiguous()
    for linear in prunable.linears:
        name = f"{linear.name}.weight"
        scores = weight_importance(parameters[name])
        stays = scores.numel() - _gone(asked[linear.name], scores.numel())
        tensors[name] = _keep_largest(scores, stays, before.get(name))
    masks = Masks(tensors)
    assert previous is None or masks.shrinks(previous)
    return masks


def group_parameters(model: nn.Module, group: Group) -> Iterator[str]:
    """Names of the parameters whose first axis is the group's channels."""
    for owner in group.owners:
        for name, _ in model.get_submodule(owner).named_parameters(recurse=False):
            yield f"{owner}.{name}"


@torch.no_grad()
def effective_sparsity(model: nn.Module, prunable: Prunable, layer: str | None = None) -> float:
    """Fraction of zeros among the prunable weights ``model`` has now, in [0, 1].

    Counted are the weights of producers, depthwise convolutions and linear layers, not biases and
    norms: of the group or linear layer named ``layer``, or of all.

    Raises:
        NetworkError: ``layer`` is not prunable, or nothing is.
    """
    owners = {
        **{group.name: (group.producer, *group.depthwise) for group in prunable.groups},
        **{linear.name: (linear.name,) for linear in prunable.linears},
    }
    _require_known(prunable, owners if layer is None else [layer])
    chosen = [name for key, names in owners.items() if layer in (None, key) for name in names]
    weights = [model.get_parameter(f"{name}.weight") for name in chosen]
    if not weights:
        raise NetworkError("nothing in this network can be pruned")
    entries = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / entries


def _by_layer(prunable: Prunable, fractions: float | Mapping[str, float]) -> dict[str, float]:
    if isinstance(fractions, Mapping):
        _require_known(prunable, fractions)
        asked = {name: fractions.get(name, 0.0) for name in prunable.names}
    else:
        asked = dict.fromkeys(prunable.names, fractions)
    for name, fraction in asked.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"fraction of {name} must be in [0, 1), found {fraction}")
    return asked


def _require_known(prunable: Prunable, names: Iterable[str]) -> None:
    for name in names:
        if name not in prunable.names:
            reasons = {layer.name: layer.reason for layer in prunable.protected}
            raise NetworkError(
                "layer cannot be pruned",
                where=name,
                expected=f"one of {', '.join(prunable.names) or 'none'}",
                found=reasons.get(name),
            )


def _gone(fraction: float, entries: int) -> int:
    # 0.29 * 100 is 28.999999999999996 in floating point, and means 29.
    return min(entries - 1, math.floor(fraction * entries + 1e-9 * entries))


def _keep_largest(scores: Tensor, stays: int, kept: Tensor | None) -> Tensor:
    """Mask of at most ``stays`` entries: the largest, of equals the last, of ``kept`` only.

    Args:
        scores: Not negative, any shape; overwritten.
        stays: 1 or more.
        kept: Bool, of the same shape, or None for all.
    """
    if kept is not None:
        kept = kept.to(scores.device)
        stays = min(stays, int(kept.count_nonzero()))
        scores.masked_fill_(~kept, -1)
    gone = scores.numel() - stays
    if gone == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = scores.flatten().kthvalue(gone).values
    if not math.isfinite(limit.item()):
        raise NetworkError("weights are not finite numbers", found=limit.item())
    masked = (scores < limit).flatten()
    ties = (scores.flatten() == limit).nonzero().flatten()
    masked[ties[: gone - int(masked.count_nonzero())]] = True
    return ~masked.view(scores.shape)
