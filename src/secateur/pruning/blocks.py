"""Removal of entire residual blocks.

With zero parameters, a residual block adds nothing to its input. A block that then returns its
input bit for bit can be replaced by an identity, with the same result as the masked network. If a
block projects its input to another shape, it is replaced by the projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.pruning.importance import Importance
from secateur.pruning.plan import Plan, Shortcut
from secateur.pruning.shortcuts import ShortcutOnly
from secateur.pruning.tracing.permanent import copy_of, make_permanent
from secateur.pruning.tracing.probe import Example, call


def find_blocks(model: nn.Module, example_input: Example) -> list[Shortcut]:
    """Return the smallest residual blocks that can be removed, with the part of each that is kept.

    The network runs once in float64 on random inputs; each candidate then runs on its input with
    zero parameters in its branch.

    Args:
        model: Any network; not modified.
        example_input: See :func:`secateur.plan_removal`.

    Returns:
        In the network's order. A block with an empty ``path`` returns its input.
    """
    work = copy_of(model)
    make_permanent(work)
    work = work.cpu().double().eval()
    names = {module: name for name, module in work.named_modules()}
    with torch.no_grad():
        inputs_of = _recorded_inputs(work, _random_like(example_input))
        every = [_shortcut(names[module], module, images) for module, images in inputs_of.items()]
    blocks = {block.module: block for block in every if block is not None}
    inner = [name for name in blocks if not any(each.startswith(f"{name}.") for each in blocks)]
    order = {name: position for position, name in enumerate(names.values())}
    return [blocks[name] for name in sorted(inner, key=order.__getitem__)]


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
    """Return inputs of modules with submodules that were called once, from tensor to tensor."""
    inputs_of: dict[nn.Module, Tensor] = {}
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            inputs_of[module] = inputs[0].clone()

    for module in work.modules():
        parts = any(True for _ in module.children())
        if module is not work and parts and any(True for _ in module.parameters()):
            module.register_forward_hook(note)
    call(work, example)
    for module in work.modules():
        module._forward_hooks.clear()
    return {module: images for module, images in inputs_of.items() if calls[module] == 1}


def _shortcut(name: str, block: nn.Module, images: Tensor) -> Shortcut | None:
    """What a block returns if its branch is zero, as a path through it; None if it is none."""
    if torch.equal(_without(block, images, ()), images):
        return Shortcut(module=name)
    paths = sorted(_paths(block, images), key=lambda path: _count(block, path))
    ends = [
        name for name, part in block.named_children() if not any(True for _ in part.parameters())
    ]
    for path in paths:
        if 0 < _count(block, path) < _count(block, [name for name, _ in block.named_children()]):
            expected = _without(block, images, path)
            tails = [(), *((each,) for each in ends if each not in path)]
            for relu, end in product((False, True), tails):
                short = ShortcutOnly(block, (*path, *end), relu)
                if torch.equal(expected, short(images.clone())):
                    return Shortcut(module=name, path=(*path, *end), relu=relu)
    return None


def _count(block: nn.Module, parts: Iterable[str]) -> int:
    return sum(p.numel() for part in parts for p in block.get_submodule(part).parameters())


def _paths(block: nn.Module, images: Tensor) -> Iterator[tuple[str, ...]]:
    """Chains of a block's children; the first reads the block's input."""
    images = images.clone()
    ends: list[tuple[Tensor, tuple[str, ...]]] = [(images, ())]
    handles = []

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        for tensor, path in list(ends):
            if len(inputs) == 1 and inputs[0] is tensor and isinstance(output, Tensor):
                ends.append((output, (*path, name)))

    for name, part in block.named_children():
        hook = lambda _, inputs, output, name=name: note(name, inputs, output)  # noqa: E731
        handles.append(part.register_forward_hook(hook))
    block(images)
    for handle in handles:
        handle.remove()
    return (path for _, path in ends if path and len(set(path)) == len(path))


def _without(block: nn.Module, images: Tensor, path: Iterable[str]) -> Tensor:
    """What a block returns if all parameters outside of a path are zero."""
    kept = {id(p) for part in path for p in block.get_submodule(part).parameters()}
    before = [(p, p.clone()) for p in block.parameters() if id(p) not in kept]
    for parameter, _ in before:
        parameter.zero_()
    try:
        return block(images.clone())
    finally:
        for parameter, value in before:
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
        importance: Of the removed branch. ``l1`` and ``l2``: mean magnitude or square of the
            weights; ``taylor``: squared sum of weight times gradient of each filter, summed over
            filters; ``random``: control.
        seed: Seed of ``random``.

    Raises:
        ValueError: The importance does not apply to blocks.
    """
    blocks = find_blocks(model, example_input)
    if importance == "random":
        scores = np.random.default_rng(seed).random(len(blocks)).tolist()
    elif importance in _SCORES:
        scores = [_SCORES[importance](_weights(model, block)) for block in blocks]
    else:
        known = ", ".join((*_SCORES, "random"))
        raise ValueError(f"importance of blocks must be one of {known}, found {importance!r}")
    ranked = np.argsort(scores, kind="stable")[: max(0, min(count, len(blocks) - 1))]
    removed = [blocks[position] for position in sorted(ranked.tolist())]
    return Plan(
        blocks=tuple(block.module for block in removed if not block.path),
        shortcuts=tuple(block for block in removed if block.path),
    )


def blocks_to_go(blocks: int, fraction: float) -> int:
    """Number of blocks that a fraction is."""
    return min(max(0, blocks - 1), math.floor(fraction * blocks + 1e-9))


def _weights(model: nn.Module, block: Shortcut) -> list[nn.Parameter]:
    """Weights of the removed branch."""
    named = model.get_submodule(block.module).named_parameters(block.module)
    return [p for name, p in named if p.ndim > 1 and block.removes(name)]


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
