"""The effect of pruning on an overfitted network, compared with controls.

The publication (arXiv 2001.04850, section 3.5 and Table 5) overfits a network, prunes and retrains
it, and attributes the gain in test accuracy to pruning. Retraining alone, or any smaller network,
could have the same effect. Therefore two controls start from the same overfitted network, with the
same schedule, epochs and images: one retrains without pruning, one removes as many channels at
random.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from secateur.benchmarking.cost import parameters
from secateur.pipeline import Chain, open_chain
from secateur.pipeline.to_records import Recorder, percent
from secateur.recipe import Recipe
from secateur.records import Record
from secateur.statistics import Interval, mcnemar, mean, paired_drop, proportion
from secateur.store import Stage, Store, save_tensors, write_json
from secateur.training.evaluation import correct_and_loss

Arm = Literal["pruned", "random", "dense"]
ARMS: tuple[Arm, ...] = ("pruned", "random", "dense")

_CHANGES: dict[Arm, dict[str, Any]] = {
    "pruned": {"importance": "l2"},
    "random": {"importance": "random"},
    "dense": {"fraction": 0.0, "objective": None, "target": None, "scope": "local"},
}


def arm_of(recipe: Recipe, arm: Arm) -> Recipe:
    """The recipe of one arm: ``recipe`` with another criterion, or without pruning.

    ``pruned`` removes the channels of smallest l2 norm, ``random`` as many at random, ``dense``
    none. Everything else is equal, so that arms share the overfitted network and differ in pruning
    only.
    """
    return recipe.model_copy(update={"prune": recipe.prune.model_copy(update=_CHANGES[arm])})


class Overfitting:
    """The overfitted network of a recipe and its three arms, each a chain in the same store.

    Args:
        recipe: ``data``, ``network`` and ``train`` define the overfitted network, ``prune`` the
            arms; other parts are not used.
        store: Keeps the stages.
        data_root: Folder with the data set's files, or None.
        device: Device for training and evaluation.

    Attributes:
        chain: The chain up to the overfitted network.
        arms: The chain of each arm, up to the pruned network.
    """

    def __init__(
        self, recipe: Recipe, store: Store, data_root: Path | None, device: torch.device
    ) -> None:
        self.chain = open_chain(recipe, store, data_root, device)
        self.arms = {arm: open_chain(arm_of(recipe, arm), store, data_root, device) for arm in ARMS}

    @cached_property
    def networks(self) -> dict[str, Stage]:
        """The stage of each network: ``overfitted`` and the arms."""
        overfitted = {"overfitted": self.chain.stage("train")}
        return overfitted | {arm: chain.stage("remove") for arm, chain in self.arms.items()}

    @cached_property
    def fit(self) -> Stage:
        """Evaluate each network on its training images and on the test images."""
        reads = {"data": self.chain.stage("data"), **self.networks}
        return self.chain.make("fit", self.chain.data_set.test_key(), reads, self._make_fit)

    def _make_fit(self, chain: Chain, folder: Path) -> None:
        training, _ = chain.parts
        test = chain.data_set.test.to(chain.device)
        networks: dict[str, Any] = {}
        right: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        for name, stage in self.networks.items():
            network = chain.load_network(stage)
            fitted, training_losses = correct_and_loss(network, training, chain.prepare)
            decided, test_losses = correct_and_loss(network, test, chain.prepare)
            networks[name] = {
                "train_right": int(fitted.sum()),
                "train_loss": float(training_losses.mean()),
                "parameters": parameters(network),
                "epochs": self._epochs(name),
            }
            right[name] = torch.from_numpy(decided)
            losses[name] = torch.from_numpy(test_losses)
        save_tensors(folder / "right.safetensors", right)
        save_tensors(folder / "losses.safetensors", losses)
        counts = {"training_images": len(training), "test_fingerprint": test.fingerprint}
        write_json(folder / "fit.json", counts | {"networks": networks})

    def _epochs(self, name: str) -> int:
        """Epochs of a network's training, including overfitting."""
        rounds = [] if name == "overfitted" else self.arms[name].rounds  # type: ignore[index]
        stages = (self.chain.stage("train"), *rounds)
        return sum(len(stage.json("history.json")) for stage in stages)


def run_overfit(
    recipe: Recipe, store: Store, data_root: Path | None, device: torch.device
) -> tuple[list[Record], dict[str, Tensor]]:
    """Run an overfitting cell: overfit, prune, retrain, controls, measurements.

    Existing stages are reused; an interrupted cell is resumed.

    Args:
        recipe: ``data``, ``network`` and ``train`` define the overfitted network, ``prune`` the
            arms; other parts are not used.
        store: Keeps the stages.
        data_root: Folder with the data set's files, or None.
        device: Device for training and evaluation.

    Returns:
        Results of :func:`records_of` and :func:`decisions`.

    Raises:
        SecateurError: One line that says what is wrong and what to try.
    """
    study = Overfitting(recipe, store, data_root, device)
    return records_of(study), decisions(study)


def decisions(study: Overfitting) -> dict[str, Tensor]:
    """For each variant, whether each test image is classified correctly: bool, shape (n,)."""
    right = study.fit.tensors("right.safetensors")
    return {variant_of(name): decided for name, decided in right.items()}


def records_of(study: Overfitting) -> list[Record]:
    """All records of one cell; for variants and metrics see :class:`secateur.records.Record`.

    The training loss is over all training images and exact; the interval of the gap has the width
    of the test loss's.
    """
    recipe, stage = study.chain.recipe, study.fit
    by, fit = Recorder(recipe, stage), stage.json("fit.json")
    right = {name: t.numpy() for name, t in stage.tensors("right.safetensors").items()}
    losses = {name: t.numpy() for name, t in stage.tensors("losses.safetensors").items()}
    images = fit["training_images"]
    seconds = sum(s.manifest["seconds"] for s in (stage, *study.networks.values()))
    records = [by("overfitted", "seconds", seconds, at={"stage": "fit"})]
    for name in study.networks:
        about = fit["networks"][name]
        at = {
            "label_noise": recipe.data.label_noise,
            "training_images": images,
            "epochs": about["epochs"],
        }
        variant, n, loss = variant_of(name), len(right[name]), mean(losses[name])
        fitted, train_loss = about["train_right"], about["train_loss"]
        gap = Interval(*(bound - train_loss for bound in loss))
        accuracy = percent(proportion(int(right[name].sum()), n))
        records += [
            by(variant, "top1_percent", accuracy, n, at=at),
            by(variant, "train_top1_percent", 100 * fitted / images, images, at=at),
            by(variant, "train_loss_nats", train_loss, images, at=at),
            by(variant, "test_loss_nats", loss, n, at=at),
            by(variant, "loss_gap_nats", gap, n, at=at),
            by(variant, "parameters", about["parameters"], at=at),
        ]
        for other in _BESIDE.get(name, ()):
            gain = percent(paired_drop(right[name], right[other]))
            p = {"mcnemar_p": mcnemar(right[name], right[other])}
            records.append(by(variant, f"gain_over_{other}_points", gain, n, at=at | p))
    return records


_BESIDE = {"pruned": ("dense", "random", "overfitted"), "dense": ("overfitted",)}


def variant_of(name: str) -> str:
    """The variant in records of a network of the study."""
    return name if name == "overfitted" else f"overfitted-{name}"
