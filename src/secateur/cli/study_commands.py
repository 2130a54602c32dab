"""``reproduce``: the published study on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.console import say
from secateur.errors import SecateurError

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
    """
    options.wait_without_spinning()
    from secateur.study.reproduce import study

    cells = study(
        networks=network or (), datasets=dataset or (), preset=preset, seeds=seeds, tables=tables,
        out=out, device=device, jobs=jobs, sets=overrides,
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
