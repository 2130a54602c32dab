"""The command's last lines and its exit code, for each verdict."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from secateur.cli.app import app
from secateur.compression.command import Arguments
from secateur.compression.verdict import Kind, Verdict
from secateur.statistics import Interval


@pytest.mark.parametrize(
    ("kind", "start", "code"),
    [
        ("meets", "The result meets", 0),
        ("misses", "The result misses", 3),
        ("cannot tell", "The test cannot tell whether the result meets", 3),
    ],
)
def test_exit_code(monkeypatch: pytest.MonkeyPatch, kind: Kind, start: str, code: int) -> None:
    calls = []

    def run(arguments: Arguments, out: Path) -> SimpleNamespace:
        calls.append((arguments, out))
        verdict = Verdict(kind, Interval(0.1, -0.2, 0.4), 0.5, 2000)
        return SimpleNamespace(verdict=verdict, summary="4.0 times smaller", report=out / "r.html")

    monkeypatch.setattr("secateur.compression.command.compress_command", run)
    words = ["compress", "a.py:b", "--weights", "w.pt", "--max-drop", "0.5", "-o", "there"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code
    assert f"{start} the allowed loss of 0.5 points" in done.stdout
    assert "It is 4.0 times smaller." in done.stdout
    assert calls[0][1] == Path("there")
    assert calls[0][0].network == "a.py:b"
    assert calls[0][0].weights == Path("w.pt")
    assert calls[0][0].max_drop == 0.5


def test_plan_stops_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    monkeypatch.setattr(
        "secateur.compression.command.plan_command", lambda arguments, out: planned.append(out)
    )
    monkeypatch.setattr("secateur.compression.command.compress_command", None)
    done = CliRunner().invoke(app, ["compress", "--plan", "-o", "there"])
    assert done.exit_code == 0
    assert planned == [Path("there")]
