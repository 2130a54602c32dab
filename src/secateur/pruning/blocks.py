"""Removal of entire residual blocks.

With zero parameters, a residual block adds nothing to its input. A block that then returns its
input bit for bit can be replaced by an identity, with the same result as the masked network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.pruning.importance import Importance
from secateur.pruning.plan import Plan
from secateur.pruning.tracing.permanent import copy_of, make_permanent
from secateur.pruning.tracing.trace import Example, call


def find_blocks(model: nn.Module, example_input: Example) -> list[str]:
    """Return names of the smallest modules that return their input if parameters are zero.

    The network runs once in float64 on random inputs; each candidate then runs on its input with
    zero parameters.

    Args:
        model: Any network; not modified.
        example_input: See :func:`secateur.plan_removal`.
    """
    work = copy_of(model)
    make_permanent(work)
    work = work.cpu().double().eval()
    names = {module: name for name, module in work.named_modules()}
    with torch.no_grad():
        inputs_of = _recorded_inputs(work, _random_like(example_input))
        passing = [
            names[module] for module, images in inputs_of.items() if _passes_on(module, images)
        ]
    inner = [name for name in passing if not any(each.startswith(f"{name}.") for each in passing)]
    order = {name: position for position, name in enumerate(names.values())}
    return sorted(inner, key=order.__getitem__)


def _random_like(example_input: Example) -> Example:
    generator = torch.Generator().manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        plain = tensor.detach().as_subclass(Tensor).cpu()
        if not plain.is_floating_point():
            return plain
        return torch.randn(plain.shape, generator=generator, dtype=torch.float64)

    example = tree_map_only(Tensor, draw, example_input)
    return tuple(example) if isinstance(example, list) else example


def _recorded_inputs(work: nn.Module, example: Example) -> dict[nn.Module, Tensor]:
    """Return inputs of modules with submodules that were called once and keep the input's shape."""
    inputs_of: dict[nn.Module, Tensor] = {}
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        single = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        if single and inputs[0].shape == output.shape:
            inputs_of[module] = inputs[0].clone()

    for module in work.modules():
        parts = any(True for _ in module.children())
        if module is not work and parts and any(True for _ in module.parameters()):
            module.register_forward_hook(note)
    call(work, example)
    for module in work.modules():
        module._forward_hooks.clear()
    return {module: images for module, images in inputs_of.items() if calls[module] == 1}


def _passes_on(module: nn.Module, images: Tensor) -> bool:
    before = [parameter.clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.zero_()
    try:
        return torch.equal(module(images.clone()), images)
    finally:
        for parameter, value in zip(module.parameters(), before, strict=True):
            parameter.copy_(value)


def plan_blocks(
    model: nn.Module,
    example_input: Example,
    count: int,
    importance: Importance = "l2",
    seed: int = 0,
) -> Plan:
    """Plan the removal of the ``count`` least important residual blocks; at least one is kept.

    Args:
        model: Not modified; with gradients for ``taylor``.
        example_input: See :func:`secateur.plan_removal`.
        count: Number of blocks to remove, at most all but one.
        importance: ``l1`` and ``l2``: mean magnitude or square of the weights; ``taylor``: squared
            sum of weight times gradient of each filter, summed over filters; ``random``: control.
        seed: Seed of ``random``.

    Raises:
        ValueError: The importance does not apply to blocks.
    """
    blocks = find_blocks(model, example_input)
    if importance == "random":
        scores = np.random.default_rng(seed).random(len(blocks)).tolist()
    elif importance in _SCORES:
        scores = [_SCORES[importance](_weights(model.get_submodule(name))) for name in blocks]
    else:
        known = ", ".join((*_SCORES, "random"))
        raise ValueError(f"importance of blocks must be one of {known}, found {importance!r}")
    ranked = np.argsort(scores, kind="stable")[: max(0, min(count, len(blocks) - 1))]
    return Plan(blocks=tuple(blocks[position] for position in sorted(ranked.tolist())))


def blocks_to_go(blocks: int, fraction: float) -> int:
    """Number of blocks that a fraction is."""
    return min(max(0, blocks - 1), math.floor(fraction * blocks + 1e-9))


def _weights(block: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in block.parameters() if parameter.ndim > 1]


def _mean_power(order: int) -> Callable[[list[nn.Parameter]], float]:
    def score(weights: list[nn.Parameter]) -> float:
        powers = sum(float(w.detach().double().abs().pow(order).sum()) for w in weights)
        return powers / max(1, sum(w.numel() for w in weights))

    return score


def _taylor(weights: list[nn.Parameter]) -> float:
    def changes() -> Iterator[float]:
        for weight in weights:
            if weight.grad is not None:
                products = (weight.detach() * weight.grad).double().flatten(1).sum(1)
                yield float(products.square().sum())

    return sum(changes())


_SCORES: dict[str, Callable[[list[nn.Parameter]], float]] = {
    "l1": _mean_power(1),
    "l2": _mean_power(2),
    "taylor": _taylor,
}
