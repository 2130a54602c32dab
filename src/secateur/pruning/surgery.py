"""Taking masked channels and dead neurons out for real: first a plan, plain data, then the cuts.

The order of steps follows distiller's ``thinning.py``. A plan can be saved, read and replayed: a
pruned network is its spec, its plan and its weights, never a pickled module.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from secateur.errors import NetworkError
from secateur.pruning.channels import Feed, Group, Prunable
from secateur.pruning.masks import Masks, group_parameters


class Cut(BaseModel):
    """What one layer keeps along one axis of its weight.

    Attributes:
        module: Name of a Conv2d, BatchNorm2d or Linear.
        axis: 0 for outputs (with bias and statistics), 1 for inputs.
        size: Width before the cut.
        keep: Rising indices of what stays.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str
    axis: Literal[0, 1]
    size: int
    keep: tuple[int, ...]


class Fold(BaseModel):
    """Neurons whose output does not depend on the input, added to the bias of their reader.

    Attributes:
        source: Name of the Linear whose ``neurons`` have no input left; they give their bias.
        target: Name of the Linear that reads them; its bias takes them up.
        rectified: Whether a ReLU stands between.
        neurons: Indices before any cut.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    target: str
    rectified: bool
    neurons: tuple[int, ...]


class Plan(BaseModel):
    """Everything that leaves a network: constants to fold first, in order, then cuts.

    It holds names and indices, no weights. Widths are those before the removal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    folds: tuple[Fold, ...] = ()
    cuts: tuple[Cut, ...] = ()

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            NetworkError: It is not a plan.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or None
            raise NetworkError("not a removal plan", where=where, found=first["msg"]) from error


def plan_removal(model: nn.Module, prunable: Prunable, masks: Masks) -> Plan:
    """Plan the removal of masked channels, then of the linear neurons that this leaves dead.

    A hidden neuron read by one other linear layer alone is dead when no weight leads out of it, or
    none leads in; the latter is the constant ``relu(bias)``, and is folded into its reader's bias.

    Args:
        model: With ``masks`` in force; left as it is.
        prunable: Of the same network.
        masks: What is kept.

    Raises:
        NetworkError: The masks do not fit, are not in force, or mask a whole group.
    """
    if not masks.in_force(model):
        raise NetworkError(
            "masks are not in force",
            found="masked weights that are not zero",
            remedy="apply the masks before planning the removal",
        )
    cuts: list[Cut] = []
    inputs: dict[str, Tensor] = {}
    for group in prunable.groups:
        kept = _kept_channels(model, group, masks)
        cuts += [_cut(owner, 0, kept) for owner in group.owners]
        for consumer in group.consumers:
            inputs[consumer.module] = kept.repeat_interleave(consumer.repeat)
    dead = _dead_neurons(model, prunable, inputs)
    for linear in prunable.linears:
        if linear.feeds and linear.name in dead.alive:
            cuts.append(_cut(linear.name, 0, dead.alive[linear.name]))
            inputs[linear.feeds.module] = dead.alive[linear.name]
    cuts += [_cut(module, 1, kept) for module, kept in inputs.items()]
    return Plan(folds=dead.folds, cuts=tuple(cut for cut in cuts if len(cut.keep) < cut.size))


def remove(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a physically smaller copy of ``model`` that computes the same in inference mode.

    Args:
        model: The network that ``plan`` was made for, its masks in force; left as it is.
        plan: What leaves.

    Raises:
        NetworkError: The plan does not fit the network.
    """
    smaller = copy.deepcopy(model)
    for fold in plan.folds:
        _fold(smaller, fold)
    _carry_out(smaller, plan.cuts)
    return smaller


def rebuild(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` in the widths after removal, to load stored weights into.

    Nothing is folded: the stored weights have it folded already.

    Args:
        model: A freshly built network; left as it is.
        plan: What left.

    Raises:
        NetworkError: The plan does not fit the network.
    """
    smaller = copy.deepcopy(model)
    _carry_out(smaller, plan.cuts)
    return smaller


# ---- planning


def _kept_channels(model: nn.Module, group: Group, masks: Masks) -> Tensor:
    """Bool (channels,): False where every parameter of the group is masked."""
    kept = torch.zeros(group.channels, dtype=torch.bool)
    for name in group_parameters(model, group):
        mask = masks.tensors.get(name)
        kept |= (
            torch.tensor(True) if mask is None else mask.cpu().reshape(group.channels, -1).any(1)
        )
    if not kept.any():
        raise NetworkError(
            "nothing would be left of a layer", where=group.name, expected="at least 1 channel"
        )
    return kept


def _cut(module: str, axis: Literal[0, 1], kept: Tensor) -> Cut:
    keep = tuple(kept.nonzero().flatten().tolist())
    return Cut(module=module, axis=axis, size=kept.numel(), keep=keep)


@dataclass(frozen=True)
class _Dead:
    alive: dict[str, Tensor]  # linear layer to bool (outputs,), on the CPU
    folds: tuple[Fold, ...]


def _dead_neurons(model: nn.Module, prunable: Prunable, inputs: dict[str, Tensor]) -> _Dead:
    """Find neurons without input going forward, then those without output going back.

    One pass each is enough: folding a constant neuron can starve only later layers, and a neuron
    that leads nowhere feeds none that stays.
    """
    hidden = [(linear.name, linear.feeds) for linear in prunable.linears if linear.feeds]
    linked = {name: _linear(model, name).weight.detach().cpu() != 0 for name, _ in hidden}
    linked |= {f.module: _linear(model, f.module).weight.detach().cpu() != 0 for _, f in hidden}
    reads = dict(inputs)
    alive: dict[str, Tensor] = {}
    folds: list[Fold] = []
    for name, feed in hidden:
        links = linked[name]
        fed = links[:, reads[name]].any(1) if name in reads else links.any(1)
        alive[name] = _spare_one(fed if _foldable(model, name, feed) else torch.ones_like(fed))
        reads[feed.module] = alive[name]
        constant = ~alive[name]
        if constant.any() and _linear(model, name).bias is not None:
            neurons = tuple(constant.nonzero().flatten().tolist())
            folds.append(
                Fold(source=name, target=feed.module, rectified=feed.rectified, neurons=neurons)
            )
    for name, feed in reversed(hidden):
        links = linked[feed.module]
        heard = links[alive[feed.module]].any(0) if feed.module in alive else links.any(0)
        alive[name] = _spare_one(alive[name] & heard, alive[name])
    return _Dead(alive, tuple(folds))


def _foldable(model: nn.Module, source: str, feed: Feed) -> bool:
    """Whether the reader can take up a constant, or the constant is zero anyway."""
    return _linear(model, feed.module).bias is not None or _linear(model, source).bias is None


def _spare_one(alive: Tensor, among: Tensor | None = None) -> Tensor:
    """Keep one neuron where none would be left: a layer cannot be empty."""
    if not alive.any():
        alive = alive.clone()
        alive[0 if among is None else int(among.nonzero()[0])] = True
    return alive


# ---- cutting


@torch.no_grad()
def _fold(model: nn.Module, fold: Fold) -> None:
    source, target = _linear(model, fold.source), _linear(model, fold.target)
    if source.bias is None or target.bias is None:
        raise _misfit(fold.target, "biases to fold", "a layer without")
    if target.in_features != source.out_features:
        raise _misfit(fold.target, f"{source.out_features} inputs", target.in_features)
    _require_indices(fold.source, fold.neurons, source.out_features)
    neurons = torch.tensor(fold.neurons, device=source.bias.device)
    constant = source.bias[neurons].double()
    if fold.rectified:
        constant = constant.relu()
    target.bias.add_((target.weight[:, neurons].double() @ constant).to(target.bias.dtype))


def _carry_out(model: nn.Module, cuts: Sequence[Cut]) -> None:
    for cut in cuts:
        layer = _layer(model, cut.module)
        _require_indices(cut.module, cut.keep, cut.size)
        if isinstance(layer, nn.BatchNorm2d) and cut.axis == 0:
            _cut_norm(layer, cut)
        elif isinstance(layer, nn.Conv2d):
            _cut_convolution(layer, cut)
        elif isinstance(layer, nn.Linear):
            _cut_linear(layer, cut)
        else:
            found = f"{type(layer).__name__} on axis {cut.axis}"
            raise _misfit(cut.module, "a Conv2d, BatchNorm2d or Linear to cut", found)


def _cut_convolution(layer: nn.Conv2d, cut: Cut) -> None:
    depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
    if layer.groups != 1 and not (depthwise and cut.axis == 0):
        raise _misfit(cut.module, "a plain or depthwise convolution", f"{layer.groups} groups")
    _require_width(cut, layer.in_channels if cut.axis else layer.out_channels)
    _select(layer, ("weight",) if cut.axis else ("weight", "bias"), cut)
    if cut.axis:
        layer.in_channels = len(cut.keep)
    else:
        layer.out_channels = len(cut.keep)
    if depthwise:
        layer.in_channels = layer.groups = len(cut.keep)


def _cut_norm(layer: nn.BatchNorm2d, cut: Cut) -> None:
    _require_width(cut, layer.num_features)
    _select(layer, ("weight", "bias", "running_mean", "running_var"), cut)
    layer.num_features = len(cut.keep)


def _cut_linear(layer: nn.Linear, cut: Cut) -> None:
    _require_width(cut, layer.in_features if cut.axis else layer.out_features)
    _select(layer, ("weight",) if cut.axis else ("weight", "bias"), cut)
    if cut.axis:
        layer.in_features = len(cut.keep)
    else:
        layer.out_features = len(cut.keep)


def _select(layer: nn.Module, names: Sequence[str], cut: Cut) -> None:
    for name in names:
        old: Tensor | None = getattr(layer, name)
        if old is None:
            continue
        keep = torch.tensor(cut.keep, device=old.device)
        new = old.detach().index_select(cut.axis, keep)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        setattr(layer, name, new)


# ---- what does not fit


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise _misfit(name, "a layer", "none of that name") from None


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = _layer(model, name)
    if not isinstance(layer, nn.Linear):
        raise _misfit(name, "a Linear", type(layer).__name__)
    return layer


def _require_width(cut: Cut, width: int) -> None:
    if width != cut.size:
        side = "inputs" if cut.axis else "outputs"
        raise _misfit(cut.module, f"{cut.size} {side}", width)


def _require_indices(module: str, indices: Sequence[int], size: int) -> None:
    rising = all(a < b for a, b in pairwise(indices))
    if not indices or not rising or indices[0] < 0 or indices[-1] >= size:
        found = f"{list(indices[:8])}{'...' if len(indices) > 8 else ''}"
        raise _misfit(module, f"rising indices below {size}", found)


def _misfit(module: str, expected: object, found: object) -> NetworkError:
    return NetworkError(
        "removal plan does not fit the network",
        where=module,
        expected=expected,
        found=found,
        remedy="a plan goes with the network it was made for",
    )
