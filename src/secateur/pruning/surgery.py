"""Applies a plan: returns the smaller network, or the network with the plan's masks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from secateur.pruning.masked_norms import count_what_stays
from secateur.pruning.masks import plan_masks
from secateur.pruning.plan import Cut, Fold, Plan, Scale, Setting, misfit
from secateur.pruning.shortcuts import ShortcutOnly
from secateur.pruning.tracing.heads import separate_heads
from secateur.pruning.tracing.permanent import copy_of, make_permanent
from secateur.pruning.tracing.probe import first_names


def remove(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the smaller network; it computes the same as ``apply_masks(model, plan)``.

    Args:
        model: The network that ``plan`` was made for; not modified.
        plan: The plan of removal.

    Raises:
        NetworkError: The plan does not fit the network.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> images = torch.zeros(1, 3, 8, 8)
        >>> plan = secateur.plan_removal(network, images, fraction=0.5)
        >>> smaller = secateur.remove(network, plan)
        >>> smaller[0].weight.shape, smaller[2].weight.shape
        (torch.Size([8, 3, 3, 3]), torch.Size([8, 8, 3, 3]))
    """
    smaller = _copy(model)
    for fold in plan.folds:
        fold_into(smaller, fold)
    for scale in plan.scales:
        _multiply(smaller, scale)
    apply_plan(smaller, plan)
    return smaller


def rebuild(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` in the widths after the removal, to load stored weights into.

    Constants are not folded, because the stored weights include them.

    Args:
        model: A newly built network; not modified.
        plan: The plan of removal.

    Raises:
        NetworkError: The plan does not fit the network.
    """
    smaller = _copy(model)
    apply_plan(smaller, plan)
    return smaller


def apply_masks(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of ``model`` in which everything that ``plan`` removes is zero.

    The weights that produce or read a removed channel are zeroed; see
    :func:`secateur.pruning.masks.plan_masks`. Norms over channels (layer norm, RMS norm, group norm
    with one group) use statistics of the remaining channels.

    Args:
        model: The network that ``plan`` was made for; not modified.
        plan: The plan of removal.

    Raises:
        NetworkError: The plan does not fit the network.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> images = torch.zeros(1, 3, 8, 8)
        >>> plan = secateur.plan_removal(network, images, fraction=0.5)
        >>> masked, smaller = secateur.apply_masks(network, plan), secateur.remove(network, plan)
        >>> noise = torch.randn(2, 3, 8, 8)
        >>> torch.allclose(masked(noise), smaller(noise), atol=1e-5)
        True
    """
    masked = _copy(model)
    for fold in plan.folds:
        fold_into(masked, fold)
    for cut in plan.cuts:
        for path in cut.paths:
            _require(_tensor(masked, path), path, cut)
    plan_masks(masked, plan).apply_(masked)
    count_what_stays(masked, plan)
    return masked


def shrink_state(state: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Cut tensors with the shapes of a network's, such as a moving average or momentum.

    Args:
        state: Tensors by the name of the parameter or buffer with the same shape.
        plan: The plan of removal; tensors that it does not name are returned unchanged.

    Raises:
        NetworkError: The size of a tensor does not fit the plan.
    """
    smaller = {name: tensor for name, tensor in state.items() if not plan.removes(name)}
    for cut in plan.cuts:
        for path in cut.paths:
            if path in smaller:
                _require(smaller[path], path, cut)
                smaller[path] = _kept(smaller[path], cut)
    return smaller


def shrink_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, smaller: nn.Module, plan: Plan
) -> torch.optim.Optimizer:
    """Return an optimizer of ``smaller`` that continues ``optimizer`` of ``model``.

    Every state with its parameter's axes (momentum, Adam's moments) is cut in the same way.

    Args:
        optimizer: An optimizer of parameters of ``model``; not modified.
        model: The network before the removal.
        smaller: The network after it.
        plan: The plan of removal.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> images = torch.zeros(1, 3, 8, 8)
        >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        >>> network(images).sum().backward()
        >>> optimizer.step()
        >>> plan = secateur.plan_removal(network, images, fraction=0.5)
        >>> smaller = secateur.remove(network, plan)
        >>> smaller_optimizer = secateur.shrink_optimizer(optimizer, network, smaller, plan)
        >>> smaller_optimizer.state[smaller[0].weight]["momentum_buffer"].shape
        torch.Size([8, 3, 3, 3])
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    new = dict(smaller.named_parameters())
    groups = [
        {**group, "params": [new[n] for p in group["params"] if (n := name_of[id(p)]) in new]}
        for group in optimizer.param_groups
    ]
    accepted = inspect.signature(type(optimizer)).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    result = type(optimizer)(groups, **options)
    cuts: dict[str, list[Cut]] = {}
    for cut in plan.cuts:
        for path in cut.paths:
            cuts.setdefault(path, []).append(cut)
    for old, state in optimizer.state.items():
        name = name_of[id(old)]
        if name not in new:
            continue
        result.state[new[name]] = {
            key: _shrunk_moment(value, old, cuts.get(name, ())) for key, value in state.items()
        }
    return result


def _shrunk_moment(value: Any, of: Tensor, cuts: Iterable[Cut]) -> Any:
    """Cut a tensor with its parameter's axes, some of which may have size 1."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    kept = value.detach().clone()
    for cut in cuts:
        if kept.ndim == of.ndim and kept.shape[cut.axis] == cut.size:
            kept = _kept(kept, cut)
    return kept


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Cut ``model`` in place, and set attributes and index buffers that depend on widths.

    Raises:
        NetworkError: The plan does not fit the network.
    """
    for name in plan.blocks:
        _module(model, name)
        model.set_submodule(name, nn.Identity())
    for short in plan.shortcuts:
        block = _module(model, short.module)
        try:
            model.set_submodule(short.module, ShortcutOnly(block, short.path, short.relu))
        except AttributeError:
            raise misfit(short.module, f"children {', '.join(short.path)}", "none") from None
    groups = {each.module: each.value for each in plan.settings if each.attribute == "groups"}
    apply_cuts(model, plan.cuts, groups)
    for setting in plan.settings:
        _set_attribute(_module(model, setting.module), setting)
    for index in plan.indices:
        buffer = _tensor(model, index.tensor)
        if len(buffer) != len(index.values):
            raise misfit(index.tensor, f"{len(index.values)} entries", len(buffer))
        buffer.copy_(torch.tensor(index.values))


def _set_attribute(module: nn.Module, setting: Setting) -> None:
    value = getattr(module, setting.attribute, None)
    new: Any = setting.value
    if setting.index is not None and type(value) in (list, tuple):
        assert isinstance(value, (list, tuple))
        items = list(value)
        known = setting.index < len(items) and type(items[setting.index]) is int
        items[setting.index : setting.index + 1] = [setting.value]
        new = type(value)(items)
    else:
        known = type(value) is int
    if not known:
        raise misfit(f"{setting.module}.{setting.attribute}", "a number", "none of that name")
    setattr(module, setting.attribute, new)
    if isinstance(module, nn.MultiheadAttention):
        module.head_dim = module.out_proj.in_features // module.num_heads


@torch.no_grad()
def _multiply(model: nn.Module, scale: Scale) -> None:
    tensor = _tensor(model, scale.tensor)
    if not 0 <= scale.axis < tensor.ndim or max(scale.inputs) >= tensor.shape[scale.axis]:
        raise misfit(scale.tensor, f"entries on axis {scale.axis}", tuple(tensor.shape))
    factors = torch.ones(tensor.shape[scale.axis], dtype=tensor.dtype, device=tensor.device)
    factors[list(scale.inputs)] = scale.factor
    tensor.mul_(factors.view([-1 if d == scale.axis else 1 for d in range(tensor.ndim)]))


def apply_cuts(
    model: nn.Module, cuts: Iterable[Cut], groups: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Cut ``model`` in place, and update the layers' attributes.

    Args:
        model: Modified.
        cuts: Kept entries.
        groups: Numbers of groups by module; other convolutions keep their inputs per group.

    Raises:
        NetworkError: A cut does not fit the network.
    """
    aliases: dict[str, list[str]] = {}
    for name, first in first_names(model).items():
        aliases.setdefault(first, []).append(name)
    shapes: dict[str, dict[str, torch.Size]] = {}
    for cut in cuts:
        for path in cut.paths:
            old = _tensor(model, path)
            _require(old, path, cut)
            new = _kept(old.detach(), cut)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            for name in aliases[path]:
                owner, _, leaf = name.rpartition(".")
                shapes.setdefault(owner, {}).setdefault(leaf, old.shape)
                setattr(model.get_submodule(owner), leaf, new)
    refitted: set[nn.Module] = set()  # a module may have several names
    for owner, before in shapes.items():
        layer = model.get_submodule(owner)
        if layer not in refitted:
            refitted.add(layer)
            _refit(layer, before, groups.get(owner))


def _refit(layer: nn.Module, before: Mapping[str, torch.Size], groups: int | None) -> None:
    """Update a layer's width attributes from its tensors; ``before`` has the old shapes."""
    leaf = next(iter(before))
    new, old = getattr(layer, leaf).shape, before[leaf]
    if isinstance(layer, nn.modules.conv._ConvNd) and "weight" in before:
        was, shape = before["weight"], layer.weight.shape
        outputs, inputs = (1, 0) if layer.transposed else (0, 1)
        if layer.groups > 1:
            layer.groups = groups or layer.groups * shape[0] // was[0]
        layer.out_channels = shape[outputs] * (layer.groups if layer.transposed else 1)
        layer.in_channels = shape[inputs] * (1 if layer.transposed else layer.groups)
    elif isinstance(layer, nn.Linear) and "weight" in before:
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_features = new[0]
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        layer.normalized_shape = tuple(new)
    elif isinstance(layer, nn.MultiheadAttention):
        _refit_attention(layer)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_groups = max(1, layer.num_groups * new[0] // old[0])
        layer.num_channels = new[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = new[0]


def _refit_attention(layer: nn.MultiheadAttention) -> None:
    """Update an attention with the same number of heads; separate them from the outer width."""
    packed = layer.in_proj_weight is not None
    weight = layer.in_proj_weight if packed else layer.q_proj_weight
    if weight.shape[0] != weight.shape[1] * (3 if packed else 1):
        separate_heads(layer)
    layer.embed_dim = weight.shape[1]
    layer.kdim = weight.shape[1] if packed else layer.k_proj_weight.shape[1]
    layer.vdim = weight.shape[1] if packed else layer.v_proj_weight.shape[1]
    layer.head_dim = weight.shape[0] // (3 if packed else 1) // layer.num_heads


@torch.no_grad()
def fold_into(model: nn.Module, fold: Fold) -> None:
    """Add a layer's response to constant inputs to a bias, in place.

    Raises:
        NetworkError: The fold does not fit the network.
    """
    layer = _module(model, fold.module)
    if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
        raise misfit(fold.module, "a layer with weights", type(layer).__name__)
    weight = layer.weight
    if len(fold.values) != len(fold.inputs) or max(fold.inputs, default=0) >= weight.shape[1]:
        raise misfit(fold.module, f"inputs below {weight.shape[1]}", list(fold.inputs[:8]))
    values = torch.tensor(fold.values, dtype=torch.float64, device=weight.device)
    columns = (
        weight[:, list(fold.inputs)].double().flatten(2).sum(2)
        if weight.ndim > 2
        else (weight[:, list(fold.inputs)].double())
    )
    added = columns @ values
    target = _tensor(model, fold.into)
    if target.shape != added.shape:
        raise misfit(fold.into, tuple(added.shape), tuple(target.shape))
    sign = 1 if fold.into.rpartition(".")[0] == fold.module else -1
    target.copy_((target.double() + sign * added).to(target.dtype))


def _copy(model: nn.Module) -> nn.Module:
    """Return a copy whose weights are plain parameters."""
    copied = copy_of(model)
    make_permanent(copied)
    return copied


def _kept(tensor: Tensor, cut: Cut) -> Tensor:
    kept = tensor.index_select(cut.axis, torch.tensor(cut.keep, device=tensor.device))
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return kept.contiguous(memory_format=torch.channels_last) if last else kept


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise misfit(name, "a module", "none of that name") from None


def _tensor(model: nn.Module, path: str) -> Tensor:
    owner, _, leaf = path.rpartition(".")
    tensor = getattr(_module(model, owner), leaf, None)
    if not isinstance(tensor, Tensor):
        raise misfit(path, "a tensor", "none of that name")
    return tensor


def _require(tensor: Tensor, path: str, cut: Cut) -> None:
    if not 0 <= cut.axis < tensor.ndim or tensor.shape[cut.axis] != cut.size:
        actual = f"shape {tuple(tensor.shape)}"
        raise misfit(path, f"{cut.size} entries on axis {cut.axis}", actual)
    distinct = set(cut.keep)
    if not distinct or len(distinct) != len(cut.keep) or not distinct <= set(range(cut.size)):
        shown = f"{list(cut.keep[:8])}{'...' if len(cut.keep) > 8 else ''}"
        raise misfit(path, f"distinct indices below {cut.size}, at least one", shown)
