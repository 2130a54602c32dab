"""Cells on a Ray cluster give what they give here; what does not fit is said before work starts."""

from __future__ import annotations

import builtins
import importlib.util
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from helpers.object_storage import FLAKY
from helpers.study import timeless
from secateur import environment
from secateur.errors import SecateurError, UsageError
from secateur.recipe import load_recipe
from secateur.records import read_records
from secateur.study.engines import Work
from secateur.study.grid import Cell, run_cell
from secateur.study.ray_engine import Needs, RayEngine, _answers, _check_node, _first_line

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray here")


def test_without_ray_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **options: object) -> object:
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'secateur\[ray\]'"):
        RayEngine()


def test_an_address_that_does_not_answer_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(UsageError, match=r"no Ray cluster answers.*refused"):
            _answers(address)
    _answers(None)
    _answers("auto")


def test_a_node_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    versions = environment.versions()
    work = Work(tmp_path)
    (tmp_path / ".nodes").write_text("token")
    with FileLock(tmp_path / ".nodes.lock", is_singleton=False):
        assert _check_node(work, "token", versions) is None
        assert "is not shared" in str(_check_node(work, "another", versions))
        other = versions | {"torch": "1.0"}
        assert "torch" in str(_check_node(work, "token", other))
        missing = Work(tmp_path, tmp_path / "missing")
        assert "no data folder" in str(_check_node(missing, "token", versions))
        stored = Work(tmp_path, None, f"{FLAKY}2://bucket")
        assert "unknown kind of storage" in str(_check_node(stored, "", versions))
    assert "do not hold between nodes" in str(_check_node(work, "token", versions))


def test_a_node_runs_as_many_cells_as_fit() -> None:
    node = {"CPU": 8.0, "GPU": 2.0, "memory": 10e9}
    assert Needs(2).fit(node) == 4
    assert Needs(2, gpus=1).fit(node) == 2
    assert Needs(1, memory=4_000_000_000).fit(node) == 2
    assert Needs(1, gpus=1).fit({"CPU": 8.0}) == 0


def test_the_last_line_of_an_error_is_its_reason() -> None:
    assert _first_line(RuntimeError("Traceback\n  File x\n\nValueError: 3\n")) == "ValueError: 3"
    assert _first_line(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize(
    ("address", "variable", "expected"),
    [
        (None, None, "local"),
        ("auto", None, "auto"),
        (None, "auto", "auto"),
        ("local", "auto", "local"),
    ],
)
def test_ray_looks_for_no_cluster_that_was_not_named(
    monkeypatch: pytest.MonkeyPatch, address: str | None, variable: str | None, expected: str
) -> None:
    addresses: list[str | None] = []
    ray = SimpleNamespace(
        init=lambda address, **options: addresses.append(address),
        nodes=list, shutdown=lambda: addresses.append("shut down"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with RayEngine(address)._connected():
        assert addresses == [expected]
    assert addresses == [expected, "shut down"]


@needs_ray
@pytest.mark.slow
def test_cells_on_ray_are_as_cells_here(
    recipe_file: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    good = Cell("good", load_recipe(str(recipe_file)))
    bad = Cell("bad", load_recipe(str(recipe_file), ["data.name=cifar10", "data.validation=0.5"]))
    run_cell(good, tmp_path / "here", image_folder, "cpu")
    ended: dict[str, str | None] = {}
    engine, work = RayEngine(), Work(tmp_path / "there", image_folder)
    engine.run([good, bad], work, lambda c, e: ended.__setitem__(c.name, e))
    assert ended["good"] is None
    assert "cifar" in str(ended["bad"])
    records = [read_records(good.folder(tmp_path / o) / "records.jsonl") for o in ("here", "there")]
    assert timeless(records[0]) == timeless(records[1])


@needs_ray
def test_a_cell_that_fits_nowhere_is_refused(tmp_path: Path) -> None:
    engine = RayEngine(needs=Needs(1, gpus=64))
    engine.slots = 0  # as it finds on a cluster without GPUs
    with pytest.raises(SecateurError, match=r"no node has what a cell needs.*num_gpus 64"):
        engine._check(Work(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
