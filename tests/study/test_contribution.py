"""What pruning contributes is claimed only where the images show it."""

from __future__ import annotations

import numpy as np

from secateur.study.cells import Cells, FinishedCell, Group, Setting
from secateur.study.contribution import contribution, contributions, verdict

N = 10_000


def group(noise: float = 0.0, seeds: int = 1, **right: int) -> Group:
    """Variant to how many of N images it is right on, the first ones."""
    conditions = (("label_noise", noise), ("training_images", 5000.0))
    setting = Setting("mobilenet_v2", "fashionmnist", "quick", "28x28 stem=paper", "", conditions)
    decided = {f"overfitted{'-' if arm else ''}{arm}": np.arange(N) < k for arm, k in right.items()}
    cells = tuple(FinishedCell(f"seed{s}", setting, s, True, (), decided) for s in range(seeds))
    return Group(setting, True, cells)


def arms(pruned: int, dense: int, random: int, overfitted: int, **more: object) -> Group:
    right = {"": overfitted, "pruned": pruned, "dense": dense, "random": random}
    return group(**more, **right)  # type: ignore[arg-type]


def test_pruning_is_held_against_the_network_trained_as_long() -> None:
    said = contribution(arms(pruned=9100, dense=9100, random=9099, overfitted=8900))
    pruning, retraining = said.split(";")
    assert "pruning contributes nothing that can be shown (0.00 points" in pruning
    assert "retraining alone contributes +2.00 points of test accuracy" in retraining
    assert "at random nothing that can be shown (+0.01 points" in retraining


def test_a_loss_is_said_to_be_one() -> None:
    said = contribution(arms(pruned=9000, dense=9060, random=9000, overfitted=8900))
    assert "pruning contributes \N{MINUS SIGN}0.60 points of test accuracy" in said


def test_a_sentence_for_each_share_of_wrong_labels_and_none_without_its_control() -> None:
    whole, noisy = arms(9100, 9100, 9100, 9000), arms(8100, 8000, 8050, 7000, noise=0.2, seeds=2)
    lone = group(noise=0.4, pruned=9000)
    said = contributions(Cells((noisy, lone, whole), {}))
    assert [sentence.split(":")[0] for sentence in said] == [
        "MobileNetV2, 0 % wrong labels, 5,000 training images, 1 seed",
        "MobileNetV2, 20 % wrong labels, 5,000 training images, 2 seeds",
    ]
    assert "pruning contributes +1.00 points" in said[1]


def test_one_sentence_counts_what_is_shown() -> None:
    won, lost = arms(9100, 9000, 9000, 8900), arms(9000, 9060, 9000, 8900, noise=0.2)
    level, lone = arms(9101, 9100, 9100, 9000, noise=0.3), group(noise=0.4, pruned=9000)
    said = verdict(Cells((won, lost, level, lone), {}))
    assert said.startswith("Of 3 cases of a network trained to overfit, pruning itself")
    assert "gained test accuracy in 1, cost some in 1, and did nothing" in said
    assert said.endswith("shown in 1")
    assert verdict(Cells((lone,), {})) == ""


def test_networks_that_overfit_all_images_come_before_those_of_an_excerpt() -> None:
    some = group(pruned=9000, seeds=3)
    whole = (("label_noise", 0.0), ("training_images", 48_000.0))
    every = Group(some.setting._replace(conditions=whole), True, some.cells[:1])
    found = Cells((some, every), {}).of(*some.setting[1::-1], "28x28 stem=paper", overfitting=True)
    assert found == [every, some]
