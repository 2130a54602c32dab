"""Cells of the study: each is run once, alone, found again, and merged by copying its folder."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from helpers.study import timeless
from secateur.cli import app as cli
from secateur.errors import SecateurError
from secateur.recipe import Network, Teacher, Train, load_recipe
from secateur.records import Record, read_records
from secateur.store import MANIFEST
from secateur.study import engines, forecast
from secateur.study.cells import read_cells
from secateur.study.curves import NOT_IN_FORCE, scan_points
from secateur.study.engines import LocalEngine, Work
from secateur.study.forecast import total_seconds
from secateur.study.grid import Cell, cells, demonstrate, run_cell
from secateur.study.reproduce import Study, study


@pytest.fixture
def tiny(recipe_file: Path) -> list[Cell]:
    """One recipe, two seeds."""
    recipes = [load_recipe(str(recipe_file), seed=seed) for seed in (0, 1)]
    return [Cell(f"tiny-seed{recipe.seed}", recipe) for recipe in recipes]


def test_the_grid_is_what_the_tables_need() -> None:
    names = [cell.name for cell in cells(seeds=2, tables=(1, 3))]
    assert len(names) == 3 * 2 * 2
    assert names[0] == "mobilenet_v2-cifar10-quick-seed0"
    assert "alexnet-fashionmnist-quick-seed1" in names
    overfit = cells(["shufflenet_v2_x1_0"], seeds=1, tables=(5,))
    made = [(cell.recipe.data.images, cell.recipe.data.label_noise) for cell in overfit]
    assert made == [(0, 0.0), (5000, 0.0), (5000, 0.2), (5000, 0.4)]
    assert all(cell.overfit for cell in overfit)
    assert not cells(datasets=["cifar10"], tables=(6,))  # FashionMNIST alone, as published


def test_names_that_are_not_known_are_refused() -> None:
    for said in ({"networks": ["vgg"]}, {"datasets": ["mnist"]}, {"tables": "1,7"}):
        with pytest.raises(SecateurError, match="unknown name"):
            study(device="cpu", **said)  # type: ignore[arg-type]


def test_cells_share_the_threads_of_this_process(
    tiny: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cores that the process may use, not those of the machine, are divided."""
    submitted: list[int] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments: Any) -> Future[None]:
            submitted.append(arguments[-1])
            done: Future[None] = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr(engines, "ProcessPoolExecutor", lambda *_, **__: Pool(1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    LocalEngine(["cpu", "cpu"]).run(tiny[:1], Work(tmp_path, None), lambda cell, error: None)
    assert submitted == [3]


def test_an_interruption_ends_the_cells_too(
    tiny: list[Cell], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if only this process gets the signal, not the terminal's group."""

    def interrupted(futures: Iterable[Future[None]]) -> Iterator[Future[None]]:
        while not list((tmp_path / "stages").glob("train-*")):
            time.sleep(0.02)
        raise KeyboardInterrupt
        yield from futures

    monkeypatch.setattr(engines, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LocalEngine(["cpu"]).run(tiny[:1], Work(tmp_path, image_folder), lambda cell, error: None)
    assert not tiny[0].is_done(tmp_path)
    assert not active_children()


@pytest.mark.slow
def test_cells_run_side_by_side_alike_and_merge_by_copying(
    tiny: list[Cell], image_folder: Path, tmp_path: Path
) -> None:
    here, there, cell = tmp_path / "here", tmp_path / "there", tiny[0]
    twin = Cell("twin", cell.recipe)
    ended: dict[str, str | None] = {}
    LocalEngine(["cpu", "cpu"]).run(
        [cell, twin], Work(here, image_folder), lambda c, e: ended.__setitem__(c.name, e)
    )
    assert ended == {"tiny-seed0": None, "twin": None}
    assert cell.is_done(here)
    assert twin.is_done(here)
    assert len(list((here / "stages").glob("train-*"))) == 1  # the second waited for the first
    assert "train" in (cell.folder(here) / "log.txt").read_text()

    # Another process, the same seed: the same records but for times, the same decisions.
    run_cell(cell, there, image_folder, "cpu")
    one, two = (cell.folder(out) for out in (here, there))
    records = [read_records(folder / "records.jsonl") for folder in (one, two)]
    assert timeless(records[0]) == timeless(records[1])
    assert len(timeless(records[0])) > 20
    assert (one / "right.safetensors").read_bytes() == (two / "right.safetensors").read_bytes()

    demonstrate(cell, there, image_folder, "cpu")
    (flat,) = {r.value for r in read_records(two / "demonstration.jsonl")}
    (group,) = read_cells(there).groups
    assert [p.fraction for p in scan_points(group, NOT_IN_FORCE)] == [0.2, 0.5]
    assert flat == scan_points(group, NOT_IN_FORCE)[0].percent.value

    shutil.copytree(one, cell.folder(tmp_path / "merged"))
    assert [c.is_done(tmp_path / "merged") for c in tiny] == [True, False]
    merged = Study(tiny, tmp_path / "merged", LocalEngine(["cpu"]))
    assert merged.todo == [tiny[1]]

    # Measured again, all but times is as it was; what was made elsewhere cannot be.
    trained = next((there / "stages").glob(f"train-*/{MANIFEST}")).stat().st_mtime_ns
    shutil.rmtree(next((there / "stages").glob("pack-*")))  # killed when it had forgotten half
    assert Study(tiny, there, LocalEngine(["cpu"])).time_again(image_folder) == []
    again = read_records(two / "records.jsonl")
    assert timeless(again) == timeless(records[1])
    assert latencies_of(again) != latencies_of(records[1])
    assert next((there / "stages").glob(f"train-*/{MANIFEST}")).stat().st_mtime_ns == trained
    assert merged.time_again(image_folder) == []
    assert read_records(cell.folder(merged.out) / "records.jsonl") == records[0]


def latencies_of(records: list[Record]) -> list[float]:
    return [r.value for r in records if r.metric == "latency_ms"]


def test_the_plan_is_printed_and_nothing_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forecast, "_seconds_per_image", lambda *_: 0.001)
    command = ["reproduce", "--network", "alexnet", "--tables", "1,5", "--plan", "--device", "cpu"]
    cli.app([*command, "--jobs", "2", "--out", str(tmp_path)], standalone_mode=False)
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if "to do" in line]) == 2 + 4
    assert "overfit-alexnet-fashionmnist-quick-noise20-seed0" in out
    assert "0 of 6 cells done; 2 at a time on cpu: about" in out
    assert not (tmp_path / "stages").exists()


def test_a_cell_of_another_recipe_is_not_done(tiny: list[Cell], tmp_path: Path) -> None:
    folder = tiny[0].folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "records.jsonl").touch()
    (folder / "recipe.toml").write_text(tiny[1].recipe.to_toml())
    assert not tiny[0].is_done(tmp_path)
    (folder / "recipe.toml").write_text("name = ")
    assert not tiny[0].is_done(tmp_path)
    (folder / "recipe.toml").write_text(tiny[0].recipe.to_toml())
    assert tiny[0].is_done(tmp_path)


def test_a_cell_killed_after_its_recipe_changed_is_not_done(
    tiny: list[Cell], tmp_path: Path
) -> None:
    folder = tiny[0].folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "records.jsonl").touch()
    (folder / "recipe.toml").write_text(tiny[1].recipe.to_toml())
    with pytest.raises(SecateurError, match="no such image folder"):
        run_cell(tiny[0], tmp_path, tmp_path / "missing", "cpu")
    assert not tiny[0].is_done(tmp_path)


def test_one_failure_stops_no_other(tiny: list[Cell], tmp_path: Path) -> None:
    ended: dict[str, str | None] = {}
    LocalEngine(["cpu"]).run(
        tiny, Work(tmp_path, tmp_path / "missing"), lambda c, e: ended.__setitem__(c.name, e)
    )
    assert list(ended) == ["tiny-seed0", "tiny-seed1"]
    assert all(error and "no such image folder" in error for error in ended.values())
    assert not any(cell.is_done(tmp_path) for cell in tiny)


def test_the_plan_knows_what_is_done_and_forecasts_the_rest(
    tiny: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny[0].folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "records.jsonl").touch()
    (folder / "recipe.toml").write_text(tiny[0].recipe.to_toml())
    monkeypatch.setattr(forecast, "measured_seconds", lambda folder: 100.0)
    console = Console(file=io.StringIO(), width=150)
    for part in Study(tiny, tmp_path, LocalEngine(["cpu"])).plan():
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    done, todo, total = text.strip().splitlines()[1:]
    assert "done" in done
    assert "to do" in todo
    assert "1 min 40 s" in todo  # as its like took
    assert total.startswith("1 of 2 cells done; 1 at a time on cpu: about 1 min 40 s left")


def test_a_cell_without_its_like_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(forecast, "_seconds_per_image", lambda *_: 0.001)
    (cell,) = cells(["shufflenet_v2_x1_0"], ["fashionmnist"], tables=(1,))
    recipe = cell.recipe
    epochs = recipe.train.epochs + recipe.prune.rounds * recipe.prune.epochs
    assert forecast.forecast([cell], tmp_path)(cell) == pytest.approx(48 * epochs)
    every, some, *_ = cells(["shufflenet_v2_x1_0"], ["fashionmnist"], tables=(5,))
    for cell, images in ((every, 48), (some, 5)):
        epochs = cell.recipe.train.epochs + 3 * cell.recipe.prune.epochs
        assert forecast.forecast([cell], tmp_path)(cell) == pytest.approx(images * epochs)


def test_the_estimate_counts_the_teacher_and_the_cheaper_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def seconds(model: object, _data: str, _config: Train, teacher: object, _device: str) -> float:
        if not isinstance(model, Network):
            return 0.008
        return (0.001 if model.stem == "stride1" else 0.004) + (0.001 if teacher else 0.0)

    monkeypatch.setattr(forecast, "_seconds_per_image", seconds)
    sets = ["train.start.fraction=0.25", "prune.teacher=reference"]
    (cell,) = cells(["shufflenet_v2_x1_0"], ["cifar10"], "accurate", tables=(1,), sets=sets)
    recipe = cell.recipe
    reference = recipe.train.epochs * (0.25 * 0.002 + 0.75 * 0.005)
    retraining = recipe.prune.epochs * (0.25 * 0.001 + 0.75 * 0.004)
    teacher = recipe.teacher.train.epochs * 0.008  # type: ignore[union-attr]
    expected = 45_000 * (reference + retraining + teacher)
    assert forecast.forecast([cell], tmp_path)(cell) == pytest.approx(expected)


def test_a_few_steps_are_timed_with_their_teacher() -> None:
    teacher = Teacher(widths=(4, 4, 4), train=Train(epochs=1, batch_size=4, learning_rate=1.0))
    network = Network(name="shufflenet_v2_x1_0", resolution=32)
    config = teacher.train.model_copy(update={"shards": 2})
    for model, taught_by in ((network, teacher), (teacher, None)):
        timed = forecast._seconds_per_image
        assert 0 < timed(model, "fashionmnist", config, taught_by, "cpu") < 60


def test_processes_take_the_next_cell_when_free() -> None:
    assert total_seconds([3, 1, 1, 1, None], 2) == 3
    assert total_seconds([3, 1, 1, 1], 1) == 6
    assert total_seconds([], 2) == 0
