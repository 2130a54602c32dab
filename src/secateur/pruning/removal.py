"""Public functions that plan and remove channels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError
from torch import nn

from secateur import recipe
from secateur.benchmarking.layer_timer import Precision
from secateur.errors import NetworkError
from secateur.pruning.allocation import Curve, Scope
from secateur.pruning.importance import Importance
from secateur.pruning.plan import Plan
from secateur.pruning.planner import explain_shortfall, plan_channels
from secateur.pruning.surgery import remove
from secateur.pruning.tracing.probe import Example
from secateur.pruning.tracing.refusals import refuse_unsuitable

Objective = Literal["macs", "parameters", "latency"]


class NothingRemovedWarning(UserWarning):
    """A plan removes nothing or almost nothing."""


def plan_removal(
    model: nn.Module,
    example_input: Example,
    fraction: float = 0.5,
    importance: Importance = "l2",
    scope: Scope = "local",
    round_to: int = 8,
    *,
    objective: Objective | None = None,
    target: float | None = None,
    precision: Precision = "int8",
    threads: int | None = None,
    curves: Mapping[str, Curve] | None = None,
    keep: Sequence[str | nn.Module] = (),
    fractions: Mapping[str, float] | None = None,
    attention: Literal["width", "heads"] = "width",
    grouped: Literal["groups", "width"] = "groups",
    depth: float = 0.0,
    seed: int = 0,
    strict: bool = False,
) -> Plan:
    """Plan the removal of channels of ``model``, with all entries that depend on them.

    Args:
        model: Any network; not modified.
        example_input: Arguments of forward: a batch, (N, C, H, W), or a tuple or dict of arguments.
            Only shapes and dtypes are used, unless forward depends on values.
        fraction: Fraction of the channels to remove, in [0, 1): of each group for ``local``, else
            of all groups together.
        importance: Criterion; see :func:`secateur.pruning.importance.channel_importance`.
        scope: ``local`` removes the same fraction of every group, as published; ``global`` removes
            the least important channels of the entire network; ``sensitivity`` removes from each
            group the fraction at which its curve in ``curves`` reaches a common loss.
        round_to: Remaining widths are rounded up to a multiple of this, at most to the full width.
        objective: In place of ``fraction``: remove as little as needed so that at most ``target``
            of the ``macs`` or ``parameters`` remains. With ``latency``, widths are chosen for each
            group so that the exported network takes at most ``target`` of the time on this machine;
            ``fraction`` and ``scope`` are ignored. See :mod:`secateur.pruning.latency`.
        target: Largest remaining fraction of the objective's cost, in (0, 1].
        precision: For ``latency``: precision of the exported file, ``fp32`` or ``int8``.
        threads: For ``latency``: threads of the runtime; by default those of torch.
        curves: For ``sensitivity``: from group to points (fraction removed, loss).
        keep: Modules, their names, or patterns such as ``"head.*"``; all their outputs are kept.
            A norm keeps the channels that it normalizes.
        fractions: From module name or pattern to its own fraction, whatever the ``scope``.
        attention: Whether attentions lose channels within each head, or entire heads.
        grouped: Whether grouped convolutions lose entire groups, or the same channels of each
            group. A convolution for which one is impossible loses the other.
        depth: Fraction of the residual blocks to remove first, in [0, 1), the least important ones;
            see :func:`secateur.pruning.blocks.plan_blocks`. Other fractions refer to the remaining
            network.
        seed: Seed of ``random`` importance.
        strict: Raise an error if nothing or almost nothing is removed, instead of a warning
            (:class:`NothingRemovedWarning`).

    Returns:
        The plan, for :func:`secateur.remove` and :func:`secateur.apply_masks`.

    Raises:
        NetworkError: The network cannot be traced, or the target cannot be reached.
        ValueError: An argument is out of range.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> images = torch.zeros(1, 3, 8, 8)
        >>> plan = secateur.plan_removal(network, images, fraction=0.5)
        >>> secateur.remove(network, plan)[0].out_channels
        8
        >>> plan = secateur.plan_removal(network, images, objective="macs", target=0.6, round_to=1)
        >>> secateur.remove(network, plan)[0].out_channels
        9
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), found {fraction}")
    options = _options(
        objective=objective,
        target=target,
        precision=precision,
        importance=importance,
        scope=scope,
        linear="neurons",
        round_to=round_to,
        keep=_names(model, keep),
        fractions=dict(fractions or {}),
        attention=attention,
        grouped=grouped,
        depth=depth,
    )
    share = fraction if target is None else 1 - target
    plan, prunable = plan_channels(
        model, example_input, options, share, seed=seed, curves=curves, threads=threads
    )
    short = explain_shortfall(plan, prunable, share)
    if short is not None:
        if strict:
            raise NetworkError("nothing to remove", found=short)
        warnings.warn(short, NothingRemovedWarning, stacklevel=2)
    return plan


def prune(
    model: nn.Module,
    example_input: Example,
    fraction: float | None = None,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    **options: Any,
) -> nn.Module:
    """Return a smaller copy of ``model``, by :func:`plan_removal` and :func:`secateur.remove`.

    Args:
        model: Any network; not modified.
        example_input: See :func:`plan_removal`.
        fraction: Fraction of the channels to remove, in [0, 1); or one of the next three.
        macs: Remaining fraction of the multiply-accumulates, in (0, 1].
        parameters: Remaining fraction of the parameters, in (0, 1].
        latency: Remaining fraction of the latency on this machine, in (0, 1].
        **options: Further options of :func:`plan_removal`.

    Raises:
        NetworkError: As :func:`plan_removal`.
        ValueError: Not exactly one of the four is set.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))
        >>> smaller = secateur.prune(network, torch.zeros(1, 3, 8, 8), macs=0.5)
        >>> smaller[0].out_channels
        16
    """
    shares = {"macs": macs, "parameters": parameters, "latency": latency}
    chosen = {name: share for name, share in shares.items() if share is not None}
    if len(chosen) + (fraction is not None) != 1:
        raise ValueError("one of fraction, macs, parameters and latency must be set")
    if fraction is not None:
        plan = plan_removal(model, example_input, fraction, **options)
    else:
        ((objective, target),) = chosen.items()
        plan = plan_removal(model, example_input, objective=objective, target=target, **options)  # type: ignore[arg-type]
    return remove(model, plan)


def _options(**values: Any) -> recipe.Removal:
    """Return the options as part of a recipe.

    Raises:
        ValueError: An option is out of range.
    """
    try:
        return recipe.Removal(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "objective and target"
        raise ValueError(f"{name}: {first['msg']}, found {first['input']!r}") from None


def _names(model: nn.Module, keep: Sequence[str | nn.Module]) -> tuple[str, ...]:
    """Replace modules by their names.

    Raises:
        NetworkError: A module is not one of the network's.
    """
    refuse_unsuitable(model)
    if isinstance(keep, (str, nn.Module)):
        keep = [keep]
    names = {module: name for name, module in model.named_modules()}
    for module in keep:
        if isinstance(module, nn.Module) and module not in names:
            raise NetworkError("a module to keep is not part of the network", found=module)
    return tuple(each if isinstance(each, str) else names[each] or "*" for each in keep)
