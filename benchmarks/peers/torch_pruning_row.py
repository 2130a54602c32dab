"""Torch-Pruning by magnitude, and the training after it that Secateur's own pruning gets."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from secateur.pipeline import Chain
from secateur.pipeline.pruning_stages import fraction_of_round, retraining, retraining_teacher
from secateur.training.loop import train


def pruned_by_magnitude(chain: Chain) -> nn.Module:
    """The reference network without the recipe's fraction of channels, widths multiples of 8.

    Every group loses the same fraction, which is its default and the recipe's ``local`` scope. The
    layer that gives the logits keeps them all.
    """
    import torch_pruning

    network = chain.load_network("train").cpu()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        torch.zeros(1, *chain.input_shape),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=fraction_of_round(chain, chain.recipe.prune.rounds),
        round_to=8,
        ignored_layers=[last],
    )
    pruner.step()
    network(torch.zeros(2, *chain.input_shape))  # a wrong removal fails here, not after minutes
    return network


def prune_and_train(chain: Chain, folder: Path) -> Path:
    """File of the pruned module, trained as Secateur's is; found where it is there already.

    The same epochs in all, learning rates, distillation, seed, batches and augmentation as the
    rounds of the recipe; a killed training goes on at its last epoch.
    """
    path = folder / "network.pt"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    config = chain.recipe.prune
    epochs = config.rounds * config.epochs
    training, validation = chain.parts
    kept, _ = train(
        chain.place(pruned_by_magnitude(chain)),
        training,
        validation,
        chain.prepare,
        retraining(chain.recipe).model_copy(update={"epochs": epochs}),
        seed=chain.recipe.seed,
        checkpoint=folder / "checkpoint.safetensors",
        teacher=retraining_teacher(chain),
        label="torch-pruning",
    )
    partial = path.with_suffix(".partial")
    torch.save(kept.cpu(), partial)
    partial.rename(path)
    return path
