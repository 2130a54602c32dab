"""Runs a recipe's chain up to a goal and writes records and report into one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secateur.environment import choose_device
from secateur.pipeline.chain import Chain
from secateur.pipeline.stages import open_chain
from secateur.pipeline.to_records import to_records
from secateur.recipe import load_recipe
from secateur.records import Record, write_records
from secateur.remote import Remote
from secateur.report import write_report
from secateur.report.contents import Changes
from secateur.store import Store, save_tensors, write_bytes, write_text
from secateur.training import ranks
from secateur.training.cpu import keep_freed_memory

RECORDS, PACKED = "records.jsonl", "net.sec"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Folder with recipe.toml, records.jsonl, report.html, report.md and, after ``pack``,
            net.sec.
        records: Every measurement so far.
        fresh: Whether this call made at least one stage.
        packed: Path of net.sec after ``pack``, else None.
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
    goal: str = "pack",
    *,
    data: Path | None = None,
    out: Path = Path("runs"),
    device: str = "auto",
    seed: int | None = None,
    sets: list[str] | None = None,
    storage: str | None = None,
) -> Run:
    """Run the stages of a recipe up to ``goal``; finished stages are not repeated.

    Args:
        name: A built-in recipe's name or a path to a TOML file.
        goal: ``data``, ``train``, ``scan``, ``prune``, ``export``, ``scan-bits``, ``quantize``,
            ``bench`` or ``pack``.
        data: Folder with the data set's files, or None.
        out: Output folder: ``stages/`` and a folder for the run, ``NAME-ID``.
        device: As in :func:`secateur.environment.choose_device`.
        seed: Replaces the recipe's seed.
        sets: ``key=value`` overrides.
        storage: URL of an object storage that shares stages between machines, or None.

    Raises:
        SecateurError: One line that says what is wrong and what to try.

    Examples:
        >>> try:
        ...     secateur.run("quickstrat")
        ... except secateur.SecateurError as error:
        ...     print(str(error).partition(";")[0])
        unknown recipe: found 'quickstrat'
    """
    keep_freed_memory()
    recipe = load_recipe(name, sets, seed)
    remote = Remote(storage) if storage else None
    if remote is not None:
        remote.check()
    store = Store(out / "stages", remote=remote)
    chain = open_chain(recipe, store, data, ranks.join(choose_device(device)))
    folder = out / f"{recipe.name}-{recipe.id}"
    if ranks.rank():  # helps process 0 to train, and reports nothing
        return Run(folder, [], fresh=bool([stage.fresh for stage in chain.stages(goal)]))
    records = complete(chain, folder, goal)
    packed = folder / PACKED if goal == "pack" else None
    return Run(folder, records, store.made_any, packed)


def complete(chain: Chain, folder: Path, goal: str = "pack") -> list[Record]:
    """Make missing stages up to ``goal``, and write their results into ``folder``.

    Records are written after all other files but the report, so that a folder with records is
    complete.

    Args:
        chain: Chain of a recipe.
        folder: Output folder for recipe.toml, records.jsonl, report.html, report.md and, after
            ``pack``, net.sec and right.safetensors (which test images each variant classifies
            correctly).
        goal: See :meth:`secateur.pipeline.chain.Chain.stages`.

    Raises:
        SecateurError: A stage cannot be made.
    """
    records = to_records(chain, goal)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.toml", chain.recipe.to_toml())
    if goal == "pack":
        right = chain.stage("bench").tensors("right.safetensors")
        save_tensors(folder / "right.safetensors", right)
        write_bytes(folder / PACKED, chain.packed_file.read_bytes())
    write_records(folder / RECORDS, records)
    write_report(folder, _changes(chain) if goal in ("bench", "pack") else None)
    return records


def _changes(chain: Chain) -> Changes:
    """Differences between the files, for the report; empty if an earlier version measured them."""
    path = chain.stage("bench").folder / "changes.json"
    return Changes.model_validate_json(path.read_bytes()) if path.is_file() else Changes()
