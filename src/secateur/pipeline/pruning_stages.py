"""The middle of the chain: rounds of pruning and retraining, and the removal of what is dead."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from secateur import recipe as recipes
from secateur.pipeline.training_stages import Training, plan_of, said
from secateur.pruning.dead import plan_dead
from secateur.pruning.masks import Masks, weight_masks
from secateur.pruning.plan import Plan
from secateur.pruning.reinit import reinitialize
from secateur.pruning.rounds import plan_round
from secateur.pruning.schedule import fraction_after
from secateur.pruning.surgery import remove, shrink_state
from secateur.store import Stage, save_tensors, write_text
from secateur.training.evaluation import leave_gradients

GRADIENT_IMAGES = 2000
"""Training images whose mean gradient first-order importance uses."""


class Pruning(Training):
    """Stages from the reference network to the smaller one."""

    @property
    def _fraction(self) -> float:
        config = self.recipe.prune
        if config.target is not None:
            return 1 - config.target
        return self.threshold if config.fraction == "scan" else config.fraction

    @cached_property
    def rounds(self) -> list[Stage]:
        """Each round of pruning and retraining."""
        config, done, before = self.recipe.prune, [], self.train
        for index in range(1, config.rounds + 1):
            fraction = fraction_after(index, config.rounds, self._fraction, config.schedule)
            says = {
                "fraction": fraction,
                "prune": said(config, "fraction", "rounds", "schedule", "target"),
                "train": said(self.recipe.train),
                "seed": self.recipe.seed,
                "engine": 2,  # removes in every round; the first one masked and removed at the end
            }
            if config.objective == "latency":
                says["threads"] = self.recipe.bench.threads
            upstream = {"before": before}
            if config.scope == "sensitivity":
                upstream["scan"] = self.scan
            stage = self._stage(
                f"prune-{index}",
                says,
                upstream,
                lambda folder, i=index, f=fraction, b=before: self._make_round(folder, i, f, b),
            )
            done.append(stage)
            before = stage
        return done

    def _make_round(self, folder: Path, index: int, fraction: float, before: Stage) -> None:
        config, network = self.recipe.prune, self.load_network(before)
        plan = self._plan_round(network, fraction, index)
        smaller = remove(network, plan)
        masks = self._mask_weights(smaller, plan, fraction, before)
        masks.apply_(smaller)
        if config.retrain == "reinit":
            smaller = reinitialize(smaller, masks, self.recipe.seed + index)
        so_far = plan_of(before).then(plan)
        write_text(folder / "plan.json", so_far.to_json())
        label = f"prune {index}/{config.rounds} to {fraction:.3f}"
        placed = self.place(smaller)
        self._train_into(folder, placed, self._retraining, masks, label, config.distill)
        masks.save(folder / "masks.safetensors")

    def _plan_round(self, network: nn.Module, fraction: float, index: int) -> Plan:
        config = self.recipe.prune
        if config.importance == "taylor":
            training, _ = self.parts
            leave_gradients(network, training.spread(GRADIENT_IMAGES), self.prepare)
        curves = self.sensitivity_curves() if config.scope == "sensitivity" else None
        return plan_round(
            network, self._example, self._start, config, fraction,
            self.recipe.seed + index, curves, self.recipe.bench.threads,
        )  # fmt: skip

    def _mask_weights(
        self, network: nn.Module, plan: Plan, fraction: float, before: Stage
    ) -> Masks:
        """Masks of single weights in linear layers, those of the round before included."""
        path = before.folder / "masks.safetensors"
        previous = None
        if path.exists():
            previous = Masks(shrink_state(Masks.load(path).tensors, plan))
        return weight_masks(network, self._sparse_layers, fraction, previous)

    @property
    def _retraining(self) -> recipes.Train:
        config, base = self.recipe.prune, self.recipe.train
        peak = config.learning_rate or base.learning_rate
        changes: dict[str, Any] = {"epochs": config.epochs, "learning_rate": peak, "until": None}
        if config.retrain == "finetune":
            changes |= {
                "schedule": "constant",
                "learning_rate": peak * config.finetune_factor,
            }
        return base.model_copy(update=changes)

    @cached_property
    def remove(self) -> Stage:
        """The network without what its last round left dead."""
        return self._stage("remove", {"engine": 2}, {"prune": self.rounds[-1]}, self._make_remove)

    def _make_remove(self, folder: Path) -> None:
        last = self.rounds[-1]
        network = self.load_network(last).cpu()
        dead = plan_dead(network, self._example)
        smaller = remove(network, dead)
        write_text(folder / "plan.json", plan_of(last).then(dead).to_json())
        save_tensors(folder / "weights.safetensors", smaller.state_dict())
