"""Metrics go to the tool that is asked for, and nowhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from secateur.errors import SecateurError
from secateur.tracking import log_metrics, tracking

Calls = list[tuple[Any, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What stand-ins for both packages are called with."""
    calls: Calls = []

    def recorded(name: str) -> Any:
        return lambda *values, **named: calls.append((name, *values, *named.values()))

    class SummaryWriter:
        def __init__(self, folder: Path) -> None:
            calls.append(("open", folder))

        add_scalar, close = staticmethod(recorded("log")), staticmethod(recorded("close"))

    names = {
        "set_tracking_uri": "uri", "set_experiment": "experiment", "start_run": "open",
        "log_metric": "log", "end_run": "close",
    }  # fmt: skip
    mlflow = SimpleNamespace(**{name: recorded(short) for name, short in names.items()})
    module = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return calls


def test_tensorboard(tmp_path: Path, calls: Calls) -> None:
    with tracking("tensorboard", tmp_path):
        log_metrics("train", 1, {"loss": 0.5, "accuracy": 0.25})
    log_metrics("train", 2, {"loss": 0.4})
    assert calls == [
        ("open", tmp_path / "tensorboard"),
        ("log", "train/loss", 0.5, 1),
        ("log", "train/accuracy", 0.25, 1),
        ("close",),
    ]


def test_mlflow_keeps_its_runs_in_the_folder(tmp_path: Path, calls: Calls) -> None:
    with tracking("mlflow", tmp_path):
        log_metrics("search", 3, {"latency_ms": 1.5})
    assert ("uri", f"sqlite:///{tmp_path / 'mlflow.db'}") in calls
    assert calls[-2:] == [("log", "search/latency_ms", 1.5, 3), ("close",)]


def test_mlflow_server_of_the_environment(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    with tracking("mlflow", tmp_path):
        pass
    assert "uri" not in {call[0] for call in calls}


def test_closed_after_an_error(tmp_path: Path, calls: Calls) -> None:
    with pytest.raises(ValueError, match="there"), tracking("mlflow", tmp_path):
        raise ValueError("there")
    assert calls[-1] == ("close",)


@pytest.mark.parametrize("tool", ["tensorboard", "mlflow"])
def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    for name in ("torch.utils.tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(SecateurError, match=rf"{tool} is not installed .*secateur\[{tool}\]"),
        tracking(tool, tmp_path),
    ):
        pass


def test_the_first_of_several_processes_logs(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with tracking("tensorboard", tmp_path):
        log_metrics("train", 1, {"loss": 0.5})
    assert calls == []


def test_unknown_tool(tmp_path: Path) -> None:
    with (
        pytest.raises(SecateurError, match=r"expected tensorboard or mlflow"),
        tracking("wandb", tmp_path),
    ):
        pass


def test_nothing_is_logged_by_default(tmp_path: Path, calls: Calls) -> None:
    with tracking("", tmp_path):
        log_metrics("train", 1, {"loss": 0.5})
    assert calls == []


@pytest.mark.parametrize("tool", ["tensorboard", "mlflow"])
def test_the_folder_is_made(tmp_path: Path, calls: Calls, tool: str) -> None:
    with tracking(tool, tmp_path / "out" / "run"):
        assert (tmp_path / "out" / "run").is_dir()


def test_mlflow_sends_nothing_about_its_use(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    with tracking("mlflow", tmp_path):
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
