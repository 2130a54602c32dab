"""``reproduce`` and ``grid``: many cells, on this machine or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli import options
from secateur.console import say
from secateur.errors import SecateurError, UsageError

if TYPE_CHECKING:
    from secateur.study.engines import Engine

app = typer.Typer()

DataSets = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="cifar10 or fashionmnist; repeatable. Default: both."),
]
Networks = Annotated[
    list[str] | None,
    typer.Option(
        "--network",
        help="mobilenet_v2, shufflenet_v2_x1_0 or alexnet; repeatable. Default: all three.",
    ),
]
Preset = Annotated[str, typer.Option("--preset", help="quick, fast or paper.")]
Seeds = Annotated[int, typer.Option("--seeds", help="Number of seeds, counted from 0.", min=1)]
Tables = Annotated[str, typer.Option("--tables", help="Such as 1,3,5. Default: all six.")]
PlanOnly = Annotated[
    bool,
    typer.Option("--plan", help="Print the cells, their state and the time left; run nothing."),
]
Demonstrate = Annotated[
    bool,
    typer.Option("--demonstrate", help="Also scan with masks that are not applied, labeled so."),
]
TimeAgain = Annotated[
    bool, typer.Option("--time-again", help="Then time finished cells again, one by one.")
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", help="Cells that run at once. Default: one per GPU, or per two cores.", min=1
    ),
]
EngineName = Annotated[
    str, typer.Option("--engine", help="local: processes of this machine. ray: a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Default: this machine.",
    ),
]
Cpus = Annotated[int, typer.Option("--cpus", help="Cores of a cell on Ray.", min=1)]
Gpus = Annotated[int, typer.Option("--gpus", help="GPUs of a cell on Ray.", min=0)]
Memory = Annotated[float, typer.Option("--memory", help="GB of a cell on Ray; 0: any.", min=0)]


def _engine(
    name: str,
    device: str,
    jobs: int | None,
    address: str | None,
    cpus: int,
    gpus: int,
    memory: float,
) -> Engine:
    """The engine that the options name."""
    from secateur.study.ray_engine import Needs, RayEngine
    from secateur.study.reproduce import local_engine

    if name not in ("local", "ray"):
        raise UsageError("unknown engine", where="--engine", found=name, expected="local or ray")
    if name == "ray":
        return RayEngine(address, Needs(cpus, gpus, int(memory * 1e9)))
    if address is not None:
        raise UsageError("--address needs a cluster", remedy="add --engine ray")
    return local_engine(device, jobs)


@app.command(rich_help_panel="The study")
def reproduce(
    dataset: DataSets = None,
    network: Networks = None,
    preset: Preset = "quick",
    seeds: Seeds = 1,
    tables: Tables = "",
    plan: PlanOnly = False,
    demonstration: Demonstrate = False,
    time_again: TimeAgain = False,
    data: options.DataFolder = None,
    out: options.OutFolder = Path("runs/reproduce"),
    device: options.Device = "auto",
    jobs: Jobs = None,
    engine: EngineName = "local",
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    memory: Memory = 0,
    store: options.StoreUrl = None,
    overrides: options.Overrides = None,
) -> None:
    """Reproduce the published study and compare it with both publications.

    Each cell (network, data set, seed) is skipped when done and resumed when interrupted. Cells
    made on another machine count once their folders are copied into DIR/cells.

    Cost: hours for each cell on two cores; `--plan` estimates them.

    Examples:
        secateur reproduce --plan

        secateur reproduce --dataset fashionmnist --network alexnet --seeds 3 --data ~/data

        secateur reproduce --tables 5,6 --preset fast --device cuda

        secateur reproduce --engine ray --address auto --cpus 4 --out /shared/study
    """
    options.wait_without_spinning()
    from secateur.study.reproduce import study

    cells = study(
        networks=network or (), datasets=dataset or (), preset=preset, seeds=seeds, tables=tables,
        out=out, sets=overrides, storage=store,
        engine=_engine(engine, device, jobs, address, cpus, gpus, memory),
    )  # fmt: skip
    if plan:
        options.show(cells.plan())
        return
    with options.resumable():
        errors = cells.run(data)
        if time_again:
            errors += cells.time_again(data)
        if demonstration:
            cells.demonstrate(data)
    say(f"reproduction: {cells.report()}")
    if errors:
        raise SecateurError(f"{len(errors)} cells failed", found="; ".join(errors))


@app.command(rich_help_panel="The study")
def grid(
    file: Annotated[Path, typer.Argument(metavar="GRID.toml", help="Recipes and lists of values.")],
    plan: PlanOnly = False,
    data: options.DataFolder = None,
    out: options.OutFolder = Path("runs/grid"),
    device: options.Device = "auto",
    jobs: Jobs = None,
    engine: EngineName = "local",
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    memory: Memory = 0,
    store: options.StoreUrl = None,
    overrides: options.Overrides = None,
) -> None:
    """Run recipes with every combination of lists of values, on this machine or a cluster.

    The file has `recipes = [...]`, a table `[values]` of recipe keys with a list each (`seed`,
    `network.name`, `prune.fraction`), and perhaps `[set]` with keys that all cells share. Cells
    that are done are skipped, and those that were interrupted are resumed.

    Cost: that of `secateur run` for each cell; `--plan` estimates it.

    Examples:
        secateur grid grid.toml --plan

        secateur grid grid.toml --jobs 2 --data ~/data

        secateur grid grid.toml --engine ray --address auto --gpus 1 --store s3://bucket/grid
    """
    options.wait_without_spinning()
    from secateur.study.grid_file import outcome_table, read_grid
    from secateur.study.reproduce import Study

    runs = _engine(engine, device, jobs, address, cpus, gpus, memory)
    cells = Study(read_grid(file, overrides or ()), out, runs, store)
    if plan:
        options.show(cells.plan())
        return
    with options.resumable():
        errors = cells.run(data)
    options.show([outcome_table(cells.cells, out)])
    if errors:
        raise SecateurError(f"{len(errors)} cells failed", found="; ".join(errors))
