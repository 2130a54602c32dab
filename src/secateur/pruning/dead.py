"""Dead channels: channels that are not read, and channels with a constant value.

As in the published method, a neuron without input or output connections is removed, repeatedly
through all layers (arXiv 2001.04850, section 3.3; Han et al. 2015, section 3.5). A neuron without
input still outputs a constant, which is folded into the biases of its readers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from secateur.pruning.channels import Group, Member, Prunable
from secateur.pruning.find import find_prunable
from secateur.pruning.masks import group_masks
from secateur.pruning.plan import Fold, Plan
from secateur.pruning.realize import WidthsRejected, realize_widths
from secateur.pruning.surgery import fold_into
from secateur.pruning.tracing.channel_graph import INPUTS, Axis

Bools = npt.NDArray[np.bool_]

_CLOSE = 1e-12  # relative, in float64; vector and scalar code may round differently


def plan_dead(model: nn.Module, example_input: Tensor) -> Plan:
    """Plan the removal of all dead channels.

    - A channel whose readers' weights are all zero is not read; it is removed.
    - A channel whose filters are all zero is constant. It is folded if each reader can absorb the
      constant exactly, in its bias or in the running mean of the following batch-norm. It is kept
      if a reader pads its input with zeros, which differ from the constant at the border.

    This repeats for channels that lose their readers or inputs by a removal. At least one channel
    of each layer is kept.

    Args:
        model: A network with zeros in its weights; not modified.
        example_input: A batch, (N, C, H, W); only shape and dtype are used.

    Raises:
        NetworkError: The network cannot be traced.
    """
    prunable = find_prunable(model, example_input)
    work = copy.deepcopy(model).cpu().double().eval()
    shape = (4, *example_input.shape[1:])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dead = {group.name: np.zeros(group.units, bool) for group in prunable.groups}
    gated = np.concatenate([np.empty(0, np.int64), *prunable.graph.gated])
    folds: list[Fold] = []
    while True:
        idle = {g.name: _unread(work, g) & ~dead[g.name] for g in prunable.groups}
        if not any(_new(idle, dead, prunable)):
            silent = {
                g.name: _unfed(work, prunable, g, gated) & ~dead[g.name] for g in prunable.groups
            }
            idle = _fold_constants(work, prunable, silent, dead, images, folds)
            if not any(_new(idle, dead, prunable)):
                break
        for group in prunable.groups:
            removed = _keep_one(idle[group.name], dead[group.name])
            dead[group.name] |= removed
            group_masks(work, group, removed).apply_(work)
    return Plan(folds=tuple(folds), cuts=_cuts(model, prunable, dead))


def _new(
    idle: Mapping[str, Bools], dead: Mapping[str, Bools], prunable: Prunable
) -> Iterator[bool]:
    for group in prunable.groups:
        yield bool(_keep_one(idle[group.name], dead[group.name]).any())


def _keep_one(idle: Bools, dead: Bools) -> Bools:
    """Exclude one unit from ``idle`` if no other unit would remain."""
    removed = idle & ~dead
    if (removed | dead).all() and removed.any():
        removed = removed.copy()
        removed[np.flatnonzero(removed)[0]] = False
    return removed


def _slices(model: nn.Module, member: Member) -> Bools:
    """For each position of a member, whether all its weights are zero."""
    weight = model.get_parameter(member.axis.tensor).detach().movedim(member.axis.axis, 0)
    return ~(weight.reshape(len(weight), -1) != 0).any(1).numpy()[member.index]


def _all(group: Group, members: Sequence[Member], hold: Sequence[Bools]) -> Bools:
    """For each unit, whether ``hold`` is true at all its positions in ``members``."""
    every = np.ones(group.units, bool)
    for member, holds in zip(members, hold, strict=True):
        every[member.unit[~holds]] = False
    return every


def _unread(model: nn.Module, group: Group) -> Bools:
    readers = list(group.readers())
    return _all(group, readers, [_slices(model, member) for member in readers])


def _unfed(model: nn.Module, prunable: Prunable, group: Group, gated: npt.NDArray) -> Bools:
    """Units without input: all filters that produce them from other channels are zero."""
    inside = {member.axis.tensor for member in group.members if member.axis.axis == INPUTS}
    makers = [member for member in group.makers() if member.axis.tensor not in inside]
    unfed = _all(group, makers, [_slices(model, member) for member in makers])
    if not makers:
        return np.zeros(group.units, bool)
    for member in group.members:
        nodes = prunable.graph.offsets[member.axis] + member.index
        unfed[member.unit[np.isin(nodes, gated)]] = False
    return unfed


# ---- constants


def _fold_constants(
    work: nn.Module,
    prunable: Prunable,
    silent: Mapping[str, Bools],
    dead: Mapping[str, Bools],
    images: Tensor,
    folds: list[Fold],
) -> dict[str, Bools]:
    """Fold constants into ``work`` where possible; return the units that are then not read."""
    done = {name: np.zeros(len(units), bool) for name, units in silent.items()}
    silent_units = [
        (group, unit)
        for group in prunable.groups
        for unit in np.flatnonzero(_keep_one(silent[group.name], dead[group.name])).tolist()
    ]
    if not silent_units:
        return done
    activations = _Activations(work, images)
    candidates = [(g.name, unit, _folds_of(activations, g, unit)) for g, unit in silent_units]
    able = [(name, unit, new) for name, unit, new in candidates if new is not None]
    if not _try(activations, work, [fold for *_, new in able for fold in new], folds):
        # One of them has another reader that was not observed: fold one by one.
        able = [each for each in able if _try(activations, work, each[2], folds)]
    for name, unit, _ in able:
        done[name][unit] = True
    return done


def _try(
    activations: _Activations, work: nn.Module, new: Sequence[Fold], folds: list[Fold]
) -> bool:
    """Fold into ``work`` and zero the readers' weights; revert if the output changes."""
    before = {name: tensor.clone() for name, tensor in work.state_dict().items()}
    merged = _merged(new)
    for fold in merged:
        fold_into(work, fold)
        with torch.no_grad():
            work.get_parameter(f"{fold.module}.weight")[:, list(fold.inputs)] = 0
    if activations.differs(work):
        work.load_state_dict(before)
        return False
    folds.extend(merged)
    return True


def _merged(folds: Sequence[Fold]) -> list[Fold]:
    """Merge folds of the same layer."""
    by: dict[tuple[str, str], dict[int, float]] = {}
    for fold in folds:
        pairs = zip(fold.inputs, fold.values, strict=True)
        by.setdefault((fold.module, fold.into), {}).update(pairs)
    return [
        Fold(module=module, inputs=tuple(pairs), values=tuple(pairs.values()), into=into)
        for (module, into), pairs in by.items()
    ]


class _Activations:
    """Inputs and outputs of each layer for a few random images."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        self.read: dict[str, Tensor] = {}
        self.norm: dict[str, str] = {}
        producers: dict[int, str] = {}
        kept: list[Tensor] = []
        with ExitStack() as stack, torch.inference_mode():
            for name, layer in model.named_modules():
                if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
                    stack.callback(
                        layer.register_forward_hook(self._layer(name, producers, kept)).remove
                    )
                elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    stack.callback(
                        layer.register_forward_pre_hook(self._after(name, producers)).remove
                    )
            self.output = _first(model(images))

    def _layer(self, name: str, producers: dict[int, str], kept: list[Tensor]):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            kept.append(output)  # keeps the tensor alive, so that its id is unique
            producers[id(output)] = name
            if name in self.read:
                self.read[name] = torch.full_like(inputs[0], float("nan"))  # called twice
            else:
                self.read[name] = inputs[0].clone()

        return hook

    def _after(self, name: str, producers: dict[int, str]):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in producers:
                self.norm[producers[id(inputs[0])]] = name

        return hook

    @torch.inference_mode()
    def differs(self, model: nn.Module) -> bool:
        """Whether the output of ``model`` has changed."""
        scale = float(self.output.abs().max()) or 1.0
        return float((_first(model(self.images)) - self.output).abs().max()) > 1e-9 * scale

    def constants(self, module: str, inputs: Sequence[int]) -> list[float] | None:
        """Constant values of some inputs of a layer, or None if one of them varies."""
        read = self.read.get(module)
        layer = self.model.get_submodule(module)
        if read is None:
            return None
        axis = -1 if isinstance(layer, nn.Linear) else read.ndim - len(layer.kernel_size) - 1  # type: ignore[arg-type]
        rows = read.movedim(axis, 0)[list(inputs)].reshape(len(inputs), -1)
        low, high = rows.amin(1), rows.amax(1)
        scale = float(rows.abs().max())
        if not bool((high - low <= _CLOSE * scale).all()):  # also False for NaN
            return None
        return rows[:, 0].tolist()


def _first(output: Any) -> Tensor:
    """The first tensor of a network's output."""
    return next(value for value in tree_iter(output) if isinstance(value, Tensor))


def _folds_of(activations: _Activations, group: Group, unit: int) -> list[Fold] | None:
    """Folds of a unit's constants at all its readers, or None if one of them cannot absorb them."""
    folds = []
    for reader in group.readers():
        inputs = reader.index[reader.unit == unit].tolist()
        layer = activations.model.get_submodule(reader.module)
        values = activations.constants(reader.module, inputs)
        if values is None:
            return None
        if not any(values):
            continue
        into = _home(activations, layer, reader)
        if into is None:
            return None
        folds.append(
            Fold(module=reader.module, inputs=tuple(inputs), values=tuple(values), into=into)
        )
    return folds


def _home(activations: _Activations, layer: nn.Module, reader: Member) -> str | None:
    """The tensor that can absorb a layer's response to constant inputs."""
    name = reader.module
    if reader.axis != Axis(f"{name}.weight" if name else "weight", 1):
        return None
    if isinstance(layer, nn.modules.conv._ConvNd):
        padded = (
            layer.padding_mode == "zeros"
            and layer.padding not in (0, "valid")
            and any(side != 0 for side in layer.padding)
        )
        if layer.transposed or layer.groups > 1 or padded:
            return None
    if layer.bias is not None:
        return f"{name}.bias"
    norm = activations.norm.get(name)
    if norm is None or activations.model.get_submodule(norm).running_mean is None:
        return None
    return f"{norm}.running_mean"


# ---- cutting


def _cuts(model: nn.Module, prunable: Prunable, dead: Mapping[str, Bools]) -> tuple:
    """Cuts that remove the dead units only; in groups that shrink evenly, possibly not all."""
    scores = {name: (~removed).astype(float) for name, removed in dead.items()}
    widths = {}
    for group in prunable.groups:
        removed = int(dead[group.name].sum())
        widths[group.name] = group.steps - removed * group.steps // group.units
    full = {group.name: group.steps for group in prunable.groups if group.balanced}
    plan = realize_widths(model, prunable, widths | full, scores)
    for name in full:
        for width in range(widths[name], full[name]):
            try:
                even = realize_widths(model, prunable, widths | full | {name: width}, scores)
            except WidthsRejected:
                continue
            if _only_dead(prunable, even, dead):
                plan, full = even, full | {name: width}
                break
    return plan.cuts


def _only_dead(prunable: Prunable, plan: Plan, dead: Mapping[str, Bools]) -> bool:
    keeps = plan.keeps()
    for group in prunable.groups:
        for member in group.members:
            if member.axis in keeps:
                removed = ~np.isin(member.index, keeps[member.axis])
                if not dead[group.name][member.unit[removed]].all():
                    return False
    return True
