"""A grid's file: every combination of its values is a cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.cli import app as cli
from secateur.errors import RecipeError, UsageError
from secateur.records import write_records
from secateur.study import forecast
from secateur.study.grid import Cell
from secateur.study.grid_file import outcome_table, read_grid

GRID = """
recipes = ["quickstart", "alexnet-fashionmnist-quick"]
[values]
seed = [0, 1]
prune.fraction = [0.5, 0.7]
"scan.fractions" = [[0.2, 0.4]]
[set.train]
epochs = 3
"""


def write(folder: Path, text: str) -> Path:
    (folder / "grid.toml").write_text(text)
    return folder / "grid.toml"


def test_cells_are_all_combinations(tmp_path: Path) -> None:
    cells = read_grid(write(tmp_path, GRID), ["train.batch_size=64"])
    assert len(cells) == 8
    assert cells[0].name == "quickstart-seed0-fraction0.5-fractions_0.2_0.4_"
    recipes = [cell.recipe for cell in cells]
    assert [(r.seed, r.prune.fraction) for r in recipes[:4]] == [
        (0, 0.5), (0, 0.7), (1, 0.5), (1, 0.7),
    ]  # fmt: skip
    assert all((r.train.epochs, r.train.batch_size) == (3, 64) for r in recipes)
    assert all(r.scan.fractions == (0.2, 0.4) for r in recipes)
    assert len({r.id for r in recipes}) == 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("recipes = [", "not a TOML file"),
        ("recipes = []", "grid file does not fit.*recipes"),
        ("recipes = ['quickstart']\nvalue = 1", "grid file does not fit.*value"),
        ("recipes = ['quickstart']\nvalues = {seed = 3}", "seed.*expected a list of values"),
        ("recipes = ['quickstart']\nvalues = {sed = [3]}", "unknown recipe key.*sed"),
        ("recipes = ['quickstrat']", "did you mean 'quickstart'"),
        ("recipes = ['quickstart', 'quickstart']", "two cells of one name"),
        (f"recipes = ['quickstart']\nvalues = {{seed = {list(range(100_001))}}}", "too many cells"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        read_grid(write(tmp_path, text))
    with pytest.raises(RecipeError, match="cannot read"):
        read_grid(tmp_path / "missing.toml")


def test_the_plan_and_the_outcome_list_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forecast, "_seconds_per_image", lambda *_: 0.001)
    path = write(tmp_path, GRID)
    cli.app(["grid", str(path), "--plan", "--out", str(tmp_path)], standalone_mode=False)
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if "to do" in line]) == 8
    assert "0 of 8 cells done" in out
    cells = read_grid(path)
    _finish(cells[0], tmp_path)
    table = outcome_table(cells, tmp_path)
    assert [str(cell) for cell in table.columns[0].cells] == [cell.name for cell in cells]
    assert [str(cell) for cell in table.columns[2].cells] == ["81.25", *[""] * 7]


def _finish(cell: Cell, out: Path) -> None:
    from helpers.study import a_record

    common = {"recipe": cell.recipe, "processor": "CPU", "commit": "abc"}
    folder = cell.folder(out)
    folder.mkdir(parents=True)
    write_records(folder / "records.jsonl", [a_record(common, "packed", "top1_percent", 81.25)])
    (folder / "recipe.toml").write_text(cell.recipe.to_toml())


def test_engines_are_named_and_fit_their_options(tmp_path: Path) -> None:
    path = str(write(tmp_path, GRID))
    for options, says in (
        (["--engine", "slurm"], "unknown engine.*expected local or ray"),
        (["--address", "auto"], "add --engine ray"),
    ):
        with pytest.raises(UsageError, match=says):
            cli.app(["grid", path, *options], standalone_mode=False)
