"""One call from a network to the plan of what leaves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
from torch import Tensor, nn

from secateur import environment
from secateur.benchmarking.cost import macs, parameters
from secateur.benchmarking.layer_timer import Precision
from secateur.errors import NetworkError
from secateur.pruning.allocation import (
    Curve,
    Scope,
    global_fractions,
    local_fractions,
    sensitivity_fractions,
)
from secateur.pruning.channels import Prunable, Scores
from secateur.pruning.find import find_prunable
from secateur.pruning.importance import Importance, channel_importance
from secateur.pruning.latency import plan_latency
from secateur.pruning.plan import Plan
from secateur.pruning.realize import WidthsRejected, realize_widths
from secateur.pruning.surgery import rebuild
from secateur.pruning.tracing.trace import weightless

Counted = Literal["macs", "parameters"]
Objective = Literal[Counted, "latency"]


def plan_removal(
    model: nn.Module,
    example_input: Tensor,
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
    seed: int = 0,
) -> Plan:
    """Plan which channels leave ``model``, with everything that must go along.

    Args:
        model: Any convolutional classifier; left as it is.
        example_input: A batch of the shape to run on, (N, C, H, W); only shape and dtype count.
        fraction: Of the channels, in [0, 1): of each group for ``local``, else of all together.
        importance: What stays; see :func:`secateur.pruning.importance.channel_importance`.
        scope: ``local`` removes the same fraction of every group, as published; ``global`` the
            channels that matter least in the whole network; ``sensitivity`` from each group as much
            as its curve in ``curves`` allows for one common loss.
        round_to: Widths that remain are rounded up to a multiple, to the full width at most.
        objective: In place of ``fraction``: remove just enough that the smaller network has at most
            ``target`` of its ``macs`` or ``parameters``. With ``latency``, each group gets a width
            of its own, such that the exported network takes at most ``target`` of the time on this
            machine; ``fraction`` and ``scope`` do not count then. See
            :mod:`secateur.pruning.latency`.
        target: In (0, 1].
        precision: For ``latency``: of the file that will ship, ``fp32`` or ``int8``.
        threads: For ``latency``: of the runtime; by default as many as torch computes with.
        curves: For ``sensitivity``: group to points (fraction removed, loss).
        seed: For ``random`` importance.

    Returns:
        The plan, for :func:`secateur.remove` and :func:`secateur.apply_masks`.

    Raises:
        NetworkError: The network cannot be followed, or the target cannot be reached.
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
    _check(fraction, scope, round_to, objective, target, precision)
    prunable = find_prunable(model, example_input)
    scores = channel_importance(model, prunable, importance, seed)
    normalize = importance in ("l1", "l2")

    def plan(fraction: float) -> Plan:
        widths = choose_widths(prunable, scores, fraction, scope, round_to, normalize, curves)
        return plan_widths(model, prunable, widths, scores, round_to)

    if objective is None or target is None:
        return plan(fraction)
    if objective == "latency":
        by_widths = partial(plan_widths, model, prunable, scores=scores, round_to=round_to)
        count = threads or environment.threads()
        return plan_latency(
            model, prunable, scores, by_widths, target, round_to, precision, count
        ).plan
    return reach(model, plan, objective, target, example_input.shape[1:])


def plan_widths(
    model: nn.Module,
    prunable: Prunable,
    widths: Mapping[str, int],
    scores: Mapping[str, Scores],
    round_to: int,
) -> Plan:
    """The plan that leaves each group as wide as said; see :func:`realize_widths`.

    Raises:
        NetworkError: The network does not work in these widths.
    """
    try:
        return realize_widths(model, prunable, widths, scores, round_to, allow_full=True)
    except WidthsRejected as why:
        raise NetworkError("cannot shrink the network", found=why) from why


def choose_widths(
    prunable: Prunable,
    scores: Mapping[str, Scores],
    fraction: float,
    scope: Scope,
    round_to: int,
    normalize: bool,
    curves: Mapping[str, Curve] | None = None,
) -> dict[str, int]:
    """Steps that stay of each group; arguments as of :func:`plan_removal`."""
    if scope == "local":
        fractions = local_fractions(prunable, fraction)
    elif scope == "global":
        fractions = global_fractions(prunable, scores, fraction, normalize)
    else:
        fractions = sensitivity_fractions(prunable, curves or {}, fraction)
    judged = {name for name, each in scores.items() if np.isfinite(each).any()}
    return {
        group.name: group.width(fractions[group.name] if group.name in judged else 0, round_to)
        for group in prunable.groups
    }


def reach(
    model: nn.Module,
    plan: Callable[[float], Plan],
    objective: Counted,
    target: float,
    shape: Sequence[int],
) -> Plan:
    """The plan of the smallest fraction that meets the target, to a 256th.

    Args:
        model: Left as it is.
        plan: Gives the plan for a fraction; the larger the fraction, the smaller the network.
        objective: What is counted.
        target: At most this share of it stays, in (0, 1].
        shape: Of one image, (C, H, W).

    Raises:
        NetworkError: The target cannot be reached.
    """
    if target == 1:
        return Plan()

    def cost(network: nn.Module) -> int:
        return macs(network, shape) if objective == "macs" else parameters(network)

    probe = weightless(model)
    most = target * cost(probe)

    def meets(found: Plan) -> bool:
        return cost(rebuild(probe, found)) <= most

    best, low, high = plan(255 / 256), 0, 255
    if not meets(best):
        least = cost(rebuild(probe, best)) / cost(probe)
        raise NetworkError(
            "target cannot be reached",
            where=f"target = {target:g} of {objective}",
            expected=f"at least {least:.3f}",
            remedy="a smaller round_to reaches further",
        )
    while high - low > 1:
        middle = (low + high) // 2
        found = plan(middle / 256)
        if meets(found):
            best, high = found, middle
        else:
            low = middle
    return best


def _check(
    fraction: float,
    scope: str,
    round_to: int,
    objective: str | None,
    target: float | None,
    precision: str,
) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), found {fraction}")
    if scope not in get_args(Scope):
        raise ValueError(f"scope must be one of {get_args(Scope)}, found {scope!r}")
    if round_to < 1:
        raise ValueError(f"round_to must be 1 or more, found {round_to}")
    if (objective is None) != (target is None):
        raise ValueError("objective and target go together")
    if objective is not None and objective not in get_args(Objective):
        raise ValueError(f"objective must be one of {get_args(Objective)}, found {objective!r}")
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"target must be in (0, 1], found {target}")
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {get_args(Precision)}, found {precision!r}")
