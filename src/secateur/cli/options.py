"""Options and output functions shared by commands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.errors import InterruptedByUserError
from secateur.escaping import printable


def _complete_recipe(incomplete: str) -> list[str]:
    from secateur.recipe import builtin_recipes

    return [name for name in builtin_recipes() if name.startswith(incomplete)]


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="[RECIPE]",
        help="A built-in recipe (see `secateur recipes`) or the path of a .toml file.",
        autocompletion=_complete_recipe,
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with the data set's files; only read. Default: $SECATEUR_DATA, or a download.",
    ),
]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder for stages, records and reports.")
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="Object storage that shares stages between machines, e.g. s3://bucket/prefix.",
    ),
]
Devices = Annotated[
    int,
    typer.Option(
        "--devices", help="Processes that train together, one for each GPU; as torchrun.", min=1
    ),
]
OutFile = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replaces the recipe's seed.", min=0)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one field, e.g. train.epochs=3."),
]
Json = Annotated[bool, typer.Option("--json", help="Records on stdout, all else on stderr.")]
UNPACKED_LIMIT = 2**28
"""Bytes: the default of :data:`secateur.artifact.packing.LIMIT`, which is not imported for help."""
Limit = Annotated[
    int, typer.Option("--limit", metavar="BYTES", help="Size of the largest ONNX file.", min=1)
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="A,B,C", help="Mean of each channel, in [0, 1]."),
]
Std = Annotated[
    str | None,
    typer.Option("--std", metavar="A,B,C", help="Deviation of each channel, in [0, 1]."),
]
Log = Annotated[
    str,
    typer.Option("--log", metavar="TOOL", help="Log metrics to tensorboard or mlflow, in --out."),
]
Threads = Annotated[int, typer.Option("--threads", help="Threads inside one operator.", min=1)]


def wait_without_spinning() -> None:
    """Let waiting OpenMP threads sleep instead of spin.

    Spinning, the default, is slightly faster on idle cores and many times slower on busy ones.
    OpenMP reads the setting when torch is imported; commands that train call this function before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def started_together() -> bool:
    """Whether torchrun started this process as one of several; torch is not imported for that."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def show(parts: Iterable[Any]) -> None:
    """Print tables and lines at the width of the terminal, or 160 columns into a file or pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    for part in parts:
        text = isinstance(part, str)
        console.print(printable(part) if text else part, markup=False, soft_wrap=text)


def print_lines(lines: Iterable[str]) -> None:
    """Print each line on stdout, with control characters escaped."""
    for line in lines:
        typer.echo(printable(line))


@contextmanager
def resumable() -> Iterator[None]:
    """Turn Ctrl-C into an error that says how to resume; typer prints "Aborted!" only."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedByUserError(
            "interrupted", remedy="the same command resumes from the last checkpoint"
        ) from None
