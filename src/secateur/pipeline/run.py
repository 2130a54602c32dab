"""One run: a recipe, taken down the chain, its records and its report in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secateur.environment import choose_device
from secateur.pipeline import Pipeline
from secateur.pipeline.to_records import collect
from secateur.recipe import load_recipe
from secateur.records import Record, write_records
from secateur.report import write_report
from secateur.store import Store, write_bytes, write_text
from secateur.training.cpu import keep_freed_memory


@dataclass(frozen=True)
class Run:
    """What a run came to.

    Attributes:
        folder: Holds recipe.toml, records.jsonl, report.html, report.md and, after the whole chain,
            net.sec.
        records: Every measurement so far.
        fresh: Some stage was made just now.
        packed: net.sec, where the chain went that far.
    """

    folder: Path
    records: list[Record]
    fresh: bool
    packed: Path | None = None

    def print_summary(self) -> None:
        """Print the table of variants on stdout."""
        from rich.console import Console

        from secateur.report import summary_table

        Console().print(summary_table(self.records))


def run(
    name: str,
    upto: str = "pack",
    *,
    data: Path | None = None,
    out: Path = Path("runs"),
    device: str = "auto",
    seed: int | None = None,
    sets: list[str] | None = None,
) -> Run:
    """Take a recipe down the chain to the stage ``upto``; finished stages are found, not redone.

    Args:
        name: A built-in recipe's name or a path to a TOML file.
        upto: ``data``, ``train``, ``scan``, ``prune``, ``export``, ``scan-bits``, ``quantize``,
            ``bench`` or ``pack``.
        data: Folder with the data set's files, or None.
        out: Receives ``stages/`` and a folder for the run, ``NAME-ID``.
        device: As in :func:`secateur.environment.choose_device`.
        seed: Replaces the recipe's seed.
        sets: ``key=value`` overrides.

    Raises:
        SecateurError: One line that says what is wrong and what to try.
    """
    keep_freed_memory()
    recipe = load_recipe(name, sets, seed)
    store = Store(out / "stages")
    pipeline = Pipeline(recipe, store, data, choose_device(device))
    records = collect(pipeline, upto)
    folder = out / f"{recipe.name}-{recipe.id}"
    folder.mkdir(exist_ok=True)
    write_text(folder / "recipe.toml", recipe.to_toml())
    write_records(folder / "records.jsonl", records)
    write_report(folder)
    packed = folder / "net.sec" if upto == "pack" else None
    if packed is not None:
        write_bytes(packed, pipeline.packed_file.read_bytes())
    return Run(folder, records, store.made_any, packed)
