"""Networks trained to overfit, their three arms, and what may be said of pruning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.benchmarking.cost import parameters
from secateur.data.pixel_store import ImageFiles
from secateur.errors import DataError
from secateur.pipeline import Chain
from secateur.recipe import load_recipe
from secateur.store import Store
from secateur.study.overfit import Overfitting, records_of, run_overfit

SETS = (
    "network.batch_norm=identity",
    "network.dropout=false",
    "train.until=10",
    "train.ema=0",
    "train.epochs=4",
    "train.learning_rate=0.002",
    "prune.fraction=0.3",
    "prune.epochs=2",
    "prune.round_to=1",
    "prune.linear=neurons",
    "data.label_noise=0.2",
    "data.images=16",
)
CPU = torch.device("cpu")


@pytest.fixture
def study(recipe_file: Path, image_folder: Path, tmp_path: Path) -> Overfitting:
    recipe = load_recipe(str(recipe_file), list(SETS))
    return Overfitting(recipe, Store(tmp_path / "out"), image_folder, CPU)


def test_the_labels_trained_on_are_noisy_and_no_others(study: Overfitting) -> None:
    training, validation = study.chain.parts
    stored = study.chain.stage("data").tensors("split.safetensors")
    clean = study.chain.data_set.source.labels
    assert len(training) == 16
    assert int((training.labels != clean[stored["training"]]).sum()) == 3  # of 16 a fifth
    assert torch.equal(validation.labels, clean[stored["validation"]])
    assert not set(stored["training"].tolist()) & set(stored["validation"].tolist())
    other = study.chain.recipe.model_copy(update={"seed": 7})
    again = Overfitting(other, study.chain.store, study.chain.data_root, CPU)
    assert torch.equal(again.chain.parts[0].labels, training.labels)


def test_more_images_than_there_are(study: Overfitting) -> None:
    data = study.chain.recipe.data.model_copy(update={"images": 19})
    recipe = study.chain.recipe.model_copy(update={"data": data})
    with pytest.raises(DataError, match=r"data\.images.*at most 18, found 19"):
        assert Overfitting(recipe, study.chain.store, study.chain.data_root, CPU).chain.stage(
            "data"
        )


@pytest.mark.slow
def test_one_cell(study: Overfitting, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[str, bool]] = []

    def counting(self: ImageFiles, path: Path) -> object:
        made = {path.name.rsplit("-", 1)[0] for path in study.chain.store.root.glob("*")}
        decoded.append((path.parent.parent.name, "remove" in made))
        return decode(self, path)

    decode = ImageFiles._decode
    monkeypatch.setattr(ImageFiles, "_decode", counting)
    records = records_of(study)
    # The test images: each once, after everything else.
    assert [after for part, after in decoded if part == "test"] == [True] * 12

    chains = study.arms.values()
    assert {chain.stage("train").id for chain in chains} == {study.chain.stage("train").id}
    assert len({chain.stage("remove").id for chain in chains}) == 3
    assert len(list(study.chain.store.root.glob("train-*"))) == 1
    # Retraining goes on for as long in each arm, however well it fits.
    assert {len(c.rounds[0].json("history.json")) for c in chains} == {
        study.chain.recipe.prune.epochs
    }

    _check_nothing_left(study.arms["dense"])

    by = {(r.variant, r.metric): r for r in records}
    assert len(by) == len(records) == 1 + 4 * 6 + 4
    whole = parameters(study.chain.fresh_network())
    size = {v: by[v, "parameters"].value for v, _ in by}
    assert size["overfitted"] == size["overfitted-dense"] == whole
    assert size["overfitted-pruned"] == size["overfitted-random"] < 0.8 * whole
    epochs = len(study.chain.stage("train").json("history.json"))
    assert epochs < study.chain.recipe.train.epochs
    for variant in size:
        gap, spent, lost = (
            by[variant, f"{m}_nats"] for m in ("loss_gap", "train_loss", "test_loss")
        )
        assert gap.value == pytest.approx(lost.value - spent.value)
        assert gap.low is not None
        assert gap.low < gap.value
        trained = epochs + 2 * (variant != "overfitted")
        assert gap.at == {"label_noise": 0.2, "training_images": 16, "epochs": trained}
        assert (spent.n, lost.n) == (16, 12)
    training, _ = study.chain.parts
    network = study.chain.load_network(study.arms["random"].stage("remove"))
    right = (
        (network(study.chain.prepare(training.pixels)).argmax(1) == training.labels).double().mean()
    )
    assert by["overfitted-random", "train_top1_percent"].value == pytest.approx(100 * float(right))
    gain = by["overfitted-pruned", "gain_over_dense_points"]
    pruned, dense = (by[f"overfitted-{arm}", "top1_percent"].value for arm in ("pruned", "dense"))
    assert gain.value == pytest.approx(pruned - dense)

    store = Store(study.chain.store.root)
    again, right = run_overfit(study.chain.recipe, store, study.chain.data_root, CPU)
    assert again == records
    assert not store.made_any
    assert {v: 100 * r.double().mean().item() for v, r in right.items()} == pytest.approx(
        {v: record.value for (v, metric), record in by.items() if metric == "top1_percent"}
    )


def _check_nothing_left(chain: Chain) -> None:
    """The dense control retrained, and has every channel that it had."""
    before, after = (dict(chain.load_network(s).named_parameters()) for s in ("train", "remove"))
    assert {k: p.shape for k, p in after.items()} == {k: p.shape for k, p in before.items()}
    assert not torch.allclose(after["fc.weight"], before["fc.weight"])
