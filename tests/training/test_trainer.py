from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.data import Images, Preparation
from secateur.errors import RecipeError, TrainingError
from secateur.models.build import build_network
from secateur.recipe import Augment, Network, Start, Train
from secateur.tracking import _TOOLS, tracking
from secateur.training import loop
from secateur.training import precision as precisions
from secateur.training.loop import train
from secateur.training.trainer import (
    TEMPERATURE,
    Epoch,
    Teacher,
    Trainer,
    divergence,
    learning_rate,
)

PREPARE = Preparation((0.5,), (0.25,), 8)
CONFIG = Train(epochs=3, batch_size=8, learning_rate=0.1, ema=0.9, augment=Augment(flip=True))


def _images(n: int) -> Images:
    """Class 0 is dark, class 1 bright."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % 2
    noise = torch.randint(0, 100, (n, 1, 8, 8), generator=generator)
    return Images((noise + 120 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, ("a", "b"))


def _network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, 2),
    )


def _train(network: nn.Module, folder: Path, config: Train = CONFIG, **more: object) -> nn.Module:
    checkpoint = folder / "checkpoint.safetensors"
    kept, history = train(
        network, _images(32), _images(10), PREPARE, config, seed=3, checkpoint=checkpoint, **more
    )  # type: ignore[arg-type]
    assert [epoch.epoch for epoch in history] == list(range(1, config.epochs + 1))
    return kept


def _equal(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_learns(tmp_path: Path) -> None:
    network = _train(_network(), tmp_path, CONFIG.model_copy(update={"epochs": 6}))
    images = _images(10)
    scores = network(PREPARE(images.pixels))
    assert (scores.argmax(1) == images.labels).all()


def test_batches_too_small_for_batch_norm_are_one_line(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(RecipeError, match=r"too small for batch-norm \(train\.batch_size\)"):
        _train(network, tmp_path, CONFIG.model_copy(update={"batch_size": 1}))


def test_learns_where_the_caller_has_turned_gradients_off(tmp_path: Path) -> None:
    fresh = _network()
    with torch.no_grad():
        trained = _train(_network(), tmp_path)
    assert not _equal(trained, fresh)


def test_every_epoch_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = []
    log = lambda name, value, step: logged.append((name, step))  # noqa: E731
    monkeypatch.setitem(_TOOLS, "tensorboard", lambda folder: (log, lambda: None))
    with tracking("tensorboard", tmp_path):
        _train(_network(), tmp_path, label="fit")
    names = ("fit/loss", "fit/validation_accuracy")
    assert logged == [(name, step) for step in (1, 2, 3) for name in names]


@pytest.mark.parametrize("kill_at", [1, 5, 6, 9])
@pytest.mark.parametrize(
    ("ema", "shards", "optimizer"),
    [(0.0, 1, "sgd"), (0.9, 1, "sgd"), (0.9, 2, "sgd"), (0.0, 1, "adamw")],
)
def test_killed_at_any_step_and_resumed_is_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_at: int,
    ema: float,
    shards: int,
    optimizer: str,
) -> None:
    config = CONFIG.model_copy(update={"ema": ema, "shards": shards, "optimizer": optimizer})
    (tmp_path / "whole").mkdir()
    whole = _train(_network(), tmp_path / "whole", config)
    taken, step = 0, Trainer.step

    def dying(self: Trainer, *arguments: object) -> Tensor:
        nonlocal taken
        taken += 1
        if taken == kill_at:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        _train(_network(), tmp_path, config)
    network = _network()
    torch.manual_seed(7)  # what torch drew before must not matter to dropout
    resumed = _train(network, tmp_path, config)
    assert _equal(whole, resumed)


def test_another_seed_is_another_network(tmp_path: Path) -> None:
    results = []
    for seed in (3, 4):
        checkpoint = tmp_path / f"{seed}.safetensors"
        kept, _ = train(
            _network(), _images(32), _images(10), PREPARE, CONFIG, seed=seed, checkpoint=checkpoint
        )
        results.append(kept)
    assert not _equal(*results)


@pytest.mark.parametrize("nesterov", [False, True])
def test_masks_hold_in_weights_momentum_and_average(tmp_path: Path, nesterov: bool) -> None:
    network = _network()
    mask = torch.ones(2, 256, dtype=torch.bool)
    mask[:, ::2] = False
    with torch.no_grad():
        network[5].weight.mul_(mask)
    config = CONFIG.model_copy(update={"nesterov": nesterov, "weight_decay": 0.1})
    trainer = Trainer(network, config, 0, {"5.weight": mask})
    images = _images(16)
    for _ in range(5):
        trainer.step(PREPARE(images.pixels), images.labels, 0.5)
        assert (network[5].weight[~mask] == 0).all()
        assert (trainer.average[5].weight[~mask] == 0).all()  # type: ignore[index]
        momentum = trainer.optimizer.state[network[5].weight]["momentum_buffer"]
        assert (momentum[~mask] == 0).all()
    assert (network[5].weight[mask] != 0).all()


def test_a_loss_that_is_not_finite_stops_with_what_to_try(tmp_path: Path) -> None:
    network = _network()
    with torch.no_grad():
        network[5].bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"not finite.*epoch 1.*train\.learning_rate"):
        _train(network, tmp_path)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_schedules() -> None:
    cycle = Train(epochs=1, learning_rate=1.0, warmup=0.25)
    rates = [learning_rate(cycle, step, 8) for step in range(8)]
    assert rates == pytest.approx([0.25, 0.75, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12])
    steps = Train(epochs=1, learning_rate=1.0, schedule="step", milestones=(0.5, 0.75))
    assert [learning_rate(steps, s, 4) for s in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
    flat = Train(epochs=1, learning_rate=0.3, schedule="constant")
    assert {learning_rate(flat, s, 4) for s in range(4)} == {0.3}


def test_weight_decay_spares_norms_unless_told() -> None:
    for told, expected in ((False, 4), (True, 0)):
        config = CONFIG.model_copy(update={"decay_norms": told})
        groups = Trainer(_network(), config, 0).optimizer.param_groups
        assert len(groups[1]["params"]) == expected
        assert groups[1]["weight_decay"] == 0


def test_the_average_follows_from_the_first_step() -> None:
    trainer = Trainer(_network(), CONFIG, 0)
    before = trainer.average[5].weight.clone()  # type: ignore[index]
    images = _images(16)
    trainer.step(PREPARE(images.pixels), images.labels, 0.5)
    after = trainer.network[5].weight  # type: ignore[index]
    # One step taken: decay is (1 + 1) / (10 + 1), under the limit of 0.9.
    expected = before + (1 - 2 / 11) * (after - before)
    assert torch.allclose(trainer.average[5].weight, expected)  # type: ignore[index]


def test_divergence_is_kullback_leibler_of_softened_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 5, 4, generator=generator).double()
    p, q = ((scores / TEMPERATURE).softmax(1) for scores in (teacher, student))
    by_hand = (p * (p / q).log()).sum(1).mean() * TEMPERATURE**2
    assert divergence(teacher, student).item() == pytest.approx(by_hand.item())
    assert divergence(teacher, teacher).item() == pytest.approx(0, abs=1e-12)


def test_a_student_follows_its_teacher_where_labels_do_not_lead(tmp_path: Path) -> None:
    # The labels say nothing (both classes alike), so that only the teacher can teach.
    teacher = _train(_network(), tmp_path, CONFIG.model_copy(update={"epochs": 6})).eval()
    images = _images(32)
    blind = Images(images.pixels, torch.zeros_like(images.labels), images.classes)
    config = CONFIG.model_copy(update={"epochs": 6})
    student, _ = train(
        _network(), blind, _images(10), PREPARE, config, seed=3,
        checkpoint=tmp_path / "student.safetensors", teacher=Teacher(teacher, PREPARE, 1.0),
    )  # fmt: skip
    seen = PREPARE(_images(10).pixels)
    assert (student(seen).argmax(1) == _images(10).labels).all()


def _until(folder: Path, until: float | None = 90.0) -> tuple[nn.Module, list[Epoch]]:
    changes = {"epochs": 9, "ema": 0.0, "learning_rate": 0.002, "until": until}
    config = CONFIG.model_copy(update=changes)
    checkpoint = folder / "checkpoint.safetensors"
    return train(
        _network(), _images(32), _images(10), PREPARE, config, seed=3, checkpoint=checkpoint
    )


def test_training_ends_with_the_epoch_that_fits_enough(tmp_path: Path) -> None:
    network, history = _until(tmp_path)
    assert 1 < len(history) < 9
    found = [epoch.train_right for epoch in history]
    assert all(right is not None and right < 28.8 for right in found[:-1])
    images = _images(32)
    right = int((network(PREPARE(images.pixels)).argmax(1) == images.labels).sum())
    assert found[-1] == right >= 28.8
    assert history[-1].validation_images == 10
    # The same learning rates as without an end: only the end differs.
    (tmp_path / "whole").mkdir()
    _, whole = _until(tmp_path / "whole", until=None)
    assert [e.train_loss for e in whole][: len(history)] == [e.train_loss for e in history]
    assert len(whole) == 9


def test_an_ended_training_that_resumes_stays_ended(tmp_path: Path) -> None:
    # Killed between the last checkpoint and the stage's end, as at any other epoch's end.
    network, history = _until(tmp_path)
    again, resumed = _until(tmp_path)
    assert resumed == history
    assert _equal(network, again)


def test_a_damaged_checkpoint_costs_one_epoch_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole").mkdir()
    whole = _train(_network(), tmp_path / "whole")
    epochs, run_epoch = 0, Trainer.run_epoch

    def dying(self: Trainer, *arguments: object) -> float:
        nonlocal epochs
        epochs += 1
        if epochs == 3:
            raise KeyboardInterrupt
        return run_epoch(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "run_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        _train(_network(), tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    assert _equal(whole, _train(_network(), tmp_path))
    assert "checkpoint refused" in capsys.readouterr().err
    assert epochs == 5  # the second epoch again, and the third


def test_a_teacher_sees_the_pixels_by_its_own_preparation(tmp_path: Path) -> None:
    seen = []

    class Recording(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            return images.new_zeros(len(images), 2)

    teacher = Teacher(Recording(), PREPARE.at(6), 0.5)
    _train(_network(), tmp_path, CONFIG.model_copy(update={"epochs": 1}), teacher=teacher)
    assert seen == [(8, 1, 6, 6)] * 4


SHUFFLENET = Network(name="shufflenet_v2_x1_0", stem="cifar", resolution=8)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_first_epochs_have_the_geometry_of_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    network, seen = build_network(SHUFFLENET, 1, 2), []
    correct = loop.correctness

    def recording(average: nn.Module, images: Images, prepare: Preparation) -> object:
        seen.append((prepare.resolution, type(average.maxpool).__name__))
        return correct(average, images, prepare)

    monkeypatch.setattr(loop, "correctness", recording)
    start = Start(fraction=0.4, stem="stride1", resolution=16)
    config = CONFIG.model_copy(update={"epochs": 4, "start": start, "shards": shards})
    _train(network, tmp_path, config, built_from=SHUFFLENET)
    assert seen == [(16, "MaxPool2d")] * 2 + [(8, "Identity")] * 2
    assert isinstance(network.maxpool, nn.Identity)


@pytest.mark.parametrize(
    ("precision", "hardware", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_precision(
    precision: str, hardware: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precisions, "has_bf16", lambda device: hardware)
    network = _network()
    dtypes = []
    last = network[-1]
    last.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    config = CONFIG.model_copy(update={"precision": precision})
    images = torch.zeros(4, *_images(4).pixels.shape[1:])
    Trainer(network, config, seed=0).step(images, torch.zeros(4, dtype=torch.int64), rate=0.1)
    assert dtypes == [expected]


def test_labels_are_smoothed_in_training() -> None:
    network, images = _network(), _images(8)
    trainer = Trainer(network, CONFIG.model_copy(update={"label_smoothing": 0.3}), seed=0)
    torch.manual_seed(0)  # dropout
    with torch.no_grad():
        scores = network.train()(PREPARE(images.pixels))
    expected = nn.functional.cross_entropy(scores, images.labels, label_smoothing=0.3)
    torch.manual_seed(0)
    loss = trainer.step(PREPARE(images.pixels), images.labels, rate=0.1)
    assert float(loss) == pytest.approx(float(expected))


@pytest.mark.parametrize(("own", "others"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_teacher_has_its_own_precision(own: str, others: str) -> None:
    teacher, dtypes = _network().eval(), []
    teacher[-1].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    config, images = CONFIG.model_copy(update={"precision": others}), _images(8)
    trainer = Trainer(_network(), config, 0, teacher=Teacher(teacher, PREPARE, 0.5, own))  # type: ignore[arg-type]
    trainer.step(PREPARE(images.pixels), images.labels, 0.1, images.pixels)
    assert dtypes == [{"bf16": torch.bfloat16, "fp32": torch.float32}[own]]
    assert trainer.teacher is not None
    assert trainer.teacher(images.pixels).dtype == torch.float32
