"""Torch-Pruning by magnitude, followed by the same training as Secateur's pruning."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from secateur.benchmarking.cost import macs
from secateur.pipeline import Chain
from secateur.pipeline.pruning_stages import fraction_of_round, retraining, retraining_teacher
from secateur.training.loop import train

SEARCHED = 8
"""Halvings in the search for a ratio."""
LARGEST = 0.95
"""Largest fraction of channels removed from a group."""


def pruned_by_magnitude(network: nn.Module, shape: Sequence[int], ratio: float) -> nn.Module:
    """A copy with a fraction of the channels of each group removed, in multiples of 8.

    Every group loses the same fraction, the tool's default. The last layer is not pruned.

    Args:
        network: On the CPU.
        shape: Of an image, (C, H, W).
        ratio: In [0, 1).
    """
    import torch_pruning

    network = copy.deepcopy(network)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        torch.zeros(1, *shape),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        round_to=8,
        ignored_layers=[last],
    )
    pruner.step()
    network(torch.zeros(2, *shape))  # detects a wrong removal early
    return network


def pruned_to_macs(network: nn.Module, shape: Sequence[int], target: int) -> nn.Module:
    """The pruned copy whose multiply-accumulates of one image come closest to ``target``."""
    low, high, tried = 0.0, LARGEST, dict[int, nn.Module]()
    for _ in range(SEARCHED):
        ratio = (low + high) / 2
        smaller = pruned_by_magnitude(network, shape, ratio)
        counted = macs(smaller, shape)
        tried[counted] = smaller
        low, high = (ratio, high) if counted > target else (low, ratio)
    return tried[min(tried, key=lambda counted: abs(counted - target))]


def prune_and_train(chain: Chain, folder: Path) -> Path:
    """File of the pruned module, trained like Secateur's; made if missing.

    Total epochs, learning rates, distillation, seed, batches and augmentation are those of the
    recipe's rounds; an interrupted training is resumed.
    """
    path = folder / "network.pt"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    config = chain.recipe.prune
    epochs = config.rounds * config.epochs
    training, validation = chain.parts
    kept, _ = train(
        chain.place(
            pruned_by_magnitude(
                chain.load_network("train").cpu(),
                chain.input_shape,
                fraction_of_round(chain, config.rounds),
            )
        ),
        training,
        validation,
        chain.prepare,
        retraining(chain.recipe).model_copy(update={"epochs": epochs}),
        seed=chain.recipe.seed,
        checkpoint=folder / "checkpoint.safetensors",
        teacher=retraining_teacher(chain),
        label="torch-pruning",
    )
    save_module(kept, path)
    return path


def save_module(network: nn.Module, path: Path) -> None:
    """Write a module atomically."""
    partial = path.with_suffix(".partial")
    torch.save(network.cpu(), partial)
    partial.rename(path)
