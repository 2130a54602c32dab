"""The stages of candidates, on a network and images so small that each takes a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from secateur.compression import candidate_stages, tuning
from secateur.compression.candidate import Candidate, Method, Removal
from secateur.compression.candidate_stages import Stages
from secateur.compression.problem import Problem
from secateur.compression.settings import Settings
from secateur.data import Images, Preparation
from secateur.onnx_ir.model import read_model
from secateur.recipe import Quantize
from secateur.store import Store
from secateur.training.batch_norm import LEAST_MOMENTUM
from secateur.training.trainer import Epoch

SETTINGS = Settings.model_validate(
    {
        "tune": {"batch_size": 16, "learning_rate": 0.05},
        "bench": {"repeats": 2, "warmup": 1, "threads": 1},
        "quantize": {"images": 16, "scan_images": 20},
        "round_to": 1,
    }
)
HALF = Removal(kept=0.5, objective="macs")


def images(count: int) -> Images:
    """Class 0 is dark, class 1 bright."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
    return Images((noise + 120 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, ("a", "b"))


def problem() -> Problem:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, momentum=0.01), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    training, validation = images(64), images(40)
    return Problem(
        name="tiny", data_name="noise", network=network.eval(), sample=validation,
        counts={"training": [32, 32], "validation": [20, 20]},
        read=lambda: (training, validation), test=lambda: images(20), test_images=20,
        prepare=Preparation((0.5,), (0.25,), 8), device=torch.device("cpu"), accuracy=1.0,
    )  # fmt: skip


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(problem(), SETTINGS, Store(tmp_path))


def test_statistics_follow_the_batches_while_a_pruned_network_is_trained(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    momenta, train = [], tuning.train

    def recording(network: nn.Module, *rest: Any, **options: Any) -> Any:
        momenta.extend(m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d))
        return train(network, *rest, **options)

    monkeypatch.setattr(tuning, "train", recording)
    stages.tuned(Candidate(removal=HALF, epochs=1))
    assert momenta == [LEAST_MOMENTUM]
    assert stages.problem.network[1].momentum == 0.01  # type: ignore[index]


def test_a_candidate_is_the_network_that_was_trained(stages: Stages) -> None:
    candidate = Candidate(removal=HALF, epochs=2)
    tuned = stages.tuned(candidate)
    weights = tuned.tensors("weights.safetensors")
    network = stages.network(candidate)
    assert all(torch.equal(weights[name], v) for name, v in network.state_dict().items())
    untrained = stages.network(Candidate(removal=HALF))
    assert not torch.equal(untrained.state_dict()["0.weight"], weights["0.weight"])
    assert len(tuned.json("history.json")) == 2
    assert {path.name for path in tuned.folder.iterdir()} == {
        "stage.json", "weights.safetensors", "history.json", "tune.json",
    }  # fmt: skip


def test_rounding_can_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plainly = SETTINGS.tune.model_copy(update={"distill": 0.0, "ema": 0.0})
    stages = Stages(problem(), SETTINGS.model_copy(update={"tune": plainly}), Store(tmp_path))
    config = SETTINGS.quantize
    trained = config.model_copy(update={"epochs": 20, "learning_rate": 0.05})
    plain, better = (stages.measured(Candidate(quantize=each)) for each in (config, trained))
    assert plain.folder is not None
    assert better.folder is not None
    assert "train with rounding" in capsys.readouterr().err
    schemes = [
        weights_of(read_model(one.folder / "net.onnx")) for one in (plain, better) if one.folder
    ]
    assert schemes[0].keys() == schemes[1].keys()
    assert any((schemes[0][name] != schemes[1][name]).any() for name in schemes[0])
    assert {w.dtype for w in schemes[1].values()} == {np.dtype(np.int8)}
    assert plain.accuracy.value == 0.5
    assert better.accuracy.value >= 0.9
    names = {path.name for path in better.folder.iterdir()}
    assert not any("checkpoint" in name for name in names)


def test_zeros_stay_zero_while_rounding_is_trained(tmp_path: Path) -> None:
    sparse = problem()
    with torch.no_grad():
        sparse.network[3].weight[:, 2] = 0  # type: ignore[index]
    trained = SETTINGS.quantize.model_copy(update={"epochs": 1, "learning_rate": 0.05})
    measured = Stages(sparse, SETTINGS, Store(tmp_path)).measured(Candidate(quantize=trained))
    assert measured.folder is not None
    weights = weights_of(read_model(measured.folder / "net.onnx"))
    (second,) = (weight for weight in weights.values() if weight.shape[:2] == (8, 8))
    assert (second == 0).all((0, 2, 3)).nonzero()[0].tolist() == [2]


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The integers of a quantized file's weights."""
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.ndim > 1}


def test_a_hopeless_candidate_has_no_files(stages: Stages) -> None:
    def hopeless(history: Sequence[Epoch]) -> str:
        return "too far behind"

    candidate = Candidate(removal=HALF, epochs=3, quantize=SETTINGS.quantize)
    measured = stages.measured(candidate, hopeless)
    assert (measured.folder, measured.given_up) == (None, "too far behind")
    assert 0 < measured.parameters < stages.reference_facts["parameters"]
    assert len(stages.tuned(candidate).json("history.json")) == 1


def test_another_seed_or_other_images_are_other_stages(tmp_path: Path) -> None:
    candidate, given = Candidate(removal=HALF, epochs=1), problem()
    other = replace(given, read=lambda: (images(62), images(40)))
    reseeded = SETTINGS.model_copy(update={"seed": 1})
    ids = [
        Stages(*arguments, Store(tmp_path)).tuned(candidate).id
        for arguments in ((given, SETTINGS), (given, reseeded), (other, SETTINGS))
    ]
    assert len(set(ids)) == 3
    assert Stages(given, SETTINGS, Store(tmp_path)).tuned(candidate).id == ids[0]


def test_first_order_importance_reads_gradients(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, leave = [], candidate_stages.leave_gradients

    def recording(network: nn.Module, some: Images, prepare: Preparation) -> None:
        calls.append(len(some))
        leave(network, some, prepare)

    monkeypatch.setattr(candidate_stages, "leave_gradients", recording)
    stages.plan(HALF.model_copy(update={"method": Method(importance="taylor", scope="global")}))
    assert calls == [64]


def test_calibration_takes_as_many_training_images_as_are_set(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, quantize = [], candidate_stages.quantize_imported

    def recording(graph: Any, prepared: torch.Tensor, *rest: Any) -> Any:
        shapes.append(tuple(prepared.shape))
        return quantize(graph, prepared, *rest)

    monkeypatch.setattr(candidate_stages, "quantize_imported", recording)
    measured = stages.measured(Candidate(quantize=Quantize(images=16, scan_images=20)))
    assert shapes == [(16, 1, 8, 8)]
    assert measured.folder is not None
    assert measured.seconds >= 0
    assert measured.packed_bytes == (measured.folder / "net.sec").stat().st_size
    assert measured.onnx_bytes == (measured.folder / "net.onnx").stat().st_size
    assert np.array_equal(measured.reference, stages.reference_right)
