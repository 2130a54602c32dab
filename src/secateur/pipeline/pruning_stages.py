"""The stages ``prune-1`` to ``prune-R``, and ``remove``: rounds of pruning and retraining."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from secateur import recipe
from secateur.console import say
from secateur.pipeline.chain import Chain, StageDefinition, changed_fields, plan_of
from secateur.pipeline.sensitivity_stage import (
    pruning_threshold,
    sensitivity_curves,
    sparse_layers,
)
from secateur.pipeline.teacher_stage import taught_by_teacher, train_into
from secateur.pruning.dead import plan_dead
from secateur.pruning.masks import Masks, weight_masks
from secateur.pruning.plan import Plan
from secateur.pruning.planner import explain_shortfall, plan_channels
from secateur.pruning.reinit import reinitialize
from secateur.pruning.schedule import fraction_after
from secateur.pruning.surgery import remove, shrink_state
from secateur.store import Stage, save_tensors, write_text
from secateur.training import ranks
from secateur.training.evaluation import leave_gradients
from secateur.training.trainer import Teacher

GRADIENT_IMAGES = 2000
"""Number of training images whose mean gradient is used by first-order importance."""


def round_definitions(config: recipe.Prune) -> Iterator[StageDefinition]:
    """One stage for each round of pruning and retraining."""
    before = "train"
    for index in range(1, config.rounds + 1):
        reads = {"before": before}
        if config.scope == "sensitivity":
            reads["scan"] = "scan"
        if config.distill and config.teacher == "teacher":
            reads["teacher"] = "teacher"
        before = f"prune-{index}"
        make, key = partial(_make_round, index=index), partial(_round_key, index=index)
        yield StageDefinition(before, make, key, reads, part_of="prune", trains=True)


def _round_key(chain: Chain, index: int) -> dict[str, Any]:
    config = chain.recipe.prune
    key = {
        "fraction": fraction_of_round(chain, index),
        "prune": changed_fields(config, "fraction", "rounds", "schedule", "target"),
        "train": changed_fields(chain.recipe.train),
        "seed": chain.recipe.seed,
        "engine": 2,  # 1 masked and removed at the end; 2 removes in every round
    }
    return key | ({"threads": chain.recipe.bench.threads} if config.objective == "latency" else {})


def fraction_of_round(chain: Chain, index: int) -> float:
    """Fraction of channels, or of the objective's cost, removed after round ``index``, from 1."""
    config = chain.recipe.prune
    if config.target is not None:
        total = 1 - config.target
    else:
        total = pruning_threshold(chain) if config.fraction == "scan" else config.fraction
    return fraction_after(index, config.rounds, total, config.schedule)


def _make_round(chain: Chain, folder: Path, index: int) -> None:
    config, fraction = chain.recipe.prune, fraction_of_round(chain, index)
    before = chain.stage("train" if index == 1 else f"prune-{index - 1}")
    network = chain.load_network(before)
    # One plan for all processes: latency is measured, and differs from one to the next.
    plan = ranks.agreed(None if ranks.rank() else _plan_round(chain, before, network, index))
    smaller = remove(network, plan)
    masks = _mask_weights(chain, smaller, plan, fraction, before)
    masks.apply_(smaller)
    if config.retrain == "reinit":
        smaller = reinitialize(smaller, masks, chain.recipe.seed + index)
    write_text(folder / "plan.json", plan_of(before).then(plan).to_json())
    label = f"prune {index}/{config.rounds} to {fraction:.3f}"
    schedule, teacher = retraining(chain.recipe), retraining_teacher(chain)
    train_into(chain, folder, chain.place(smaller), schedule, label, masks, teacher)
    masks.save(folder / "masks.safetensors")


def retraining_teacher(chain: Chain) -> Teacher | None:
    """The teacher of the retraining after each round, or None."""
    config = chain.recipe.prune
    if not config.distill:
        return None
    if config.teacher == "teacher":
        return taught_by_teacher(chain, config.distill)
    precision = chain.recipe.train.precision
    return Teacher(chain.load_network("train"), chain.prepare, config.distill, precision)


def _plan_round(chain: Chain, before: Stage, network: nn.Module, index: int) -> Plan:
    """Plan a round; print the reasons if almost nothing has been removed after it."""
    config, fraction = chain.recipe.prune, fraction_of_round(chain, index)
    start = chain.dense
    if config.importance == "taylor":
        training, _ = chain.parts
        leave_gradients(network, training.spread(GRADIENT_IMAGES), chain.prepare)
    curves = sensitivity_curves(chain) if config.scope == "sensitivity" else None
    plan, _ = plan_channels(
        network,
        chain.example,
        config,
        fraction,
        start=start,
        seed=chain.recipe.seed + index,
        curves=curves,
        threads=chain.recipe.bench.threads,
    )
    total, sparse = plan_of(before).then(plan), sparse_layers(chain)
    shortfall = explain_shortfall(total, start.prunable, fraction, sparse)
    if shortfall is not None:
        say(f"warning  prune-{index}: {shortfall}")
    return plan


def _mask_weights(
    chain: Chain, network: nn.Module, plan: Plan, fraction: float, before: Stage
) -> Masks:
    """Masks of single weights in linear layers, including those of the preceding round."""
    path = before.folder / "masks.safetensors"
    previous = None
    if path.exists():
        previous = Masks(shrink_state(Masks.load(path).tensors, plan))
    return weight_masks(network, sparse_layers(chain), fraction, previous)


def retraining(config: recipe.Recipe) -> recipe.Train:
    """Configuration of the retraining after each round."""
    prune, base = config.prune, config.train
    peak = prune.learning_rate or base.learning_rate
    changes: dict[str, Any] = {"epochs": prune.epochs, "learning_rate": peak, "until": None}
    if prune.retrain == "finetune":
        changes |= {"schedule": "constant", "learning_rate": peak * prune.finetune_factor}
    return base.model_copy(update=changes)


def remove_key(_: Chain) -> dict[str, Any]:
    """Key of the removal of dead channels."""
    return {"engine": 2}


def make_remove(chain: Chain, folder: Path) -> None:
    """Remove channels without input or output after the last round."""
    last = chain.rounds[-1]
    network = chain.load_network(last).cpu()
    dead = plan_dead(network, chain.example)
    smaller = remove(network, dead)
    write_text(folder / "plan.json", plan_of(last).then(dead).to_json())
    save_tensors(folder / "weights.safetensors", smaller.state_dict())
