"""``secateur reproduce``: runs the published study and compares it with both publications."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from secateur.console import progress, say
from secateur.environment import choose_device, cores
from secateur.errors import SecateurError, UsageError
from secateur.remote import Remote
from secateur.report.numbers import duration
from secateur.study.engines import Engine, LocalEngine, Work
from secateur.study.forecast import forecast, total_seconds
from secateur.study.grid import REMOTE_CELLS, Cell, cells, demonstrate, forget_times
from secateur.study.page import write_reproduction
from secateur.study.published import DATASETS, NETWORKS
from secateur.wording import counted

PRESETS = ("quick", "accurate", "fast", "paper")
TABLES = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Study:
    """The cells of a study, its folder and devices.

    Attributes:
        cells: Cells in the order of execution.
        out: Output folder: ``cells/``, ``stages/`` and ``reproduction/``.
        engine: Runs the cells.
        storage: URL of an object storage that shares results between machines, or None.
    """

    cells: list[Cell]
    out: Path
    engine: Engine
    storage: str | None = None

    @property
    def todo(self) -> list[Cell]:
        """Unfinished cells."""
        return [cell for cell in self.cells if not cell.is_done(self.out)]

    def plan(self) -> Iterator[Table | str]:
        """Yield the cells with their state, and an estimate of the remaining time."""
        estimate, todo = forecast(self.cells, self.out, self.engine.device), self.todo
        table, expected = Table(box=None, pad_edge=False), []
        for heading in ("cell", "recipe", "state", "about"):
            table.add_column(heading)
        for cell in self.cells:
            state, about = "done", ""
            if cell in todo:
                state = "begun" if cell.folder(self.out).exists() else "to do"
                seconds = estimate(cell)
                expected.append(seconds)
                about = "unknown" if seconds is None else duration(seconds)
            table.add_row(cell.name, cell.recipe.id, state, about)
        yield table
        side = self.engine.describe()
        left = (
            f"about {duration(total_seconds(expected, self.engine.slots))} left"
            if todo
            else "all done"
        )
        cells = counted(len(self.cells), "cell")
        yield f"{len(self.cells) - len(todo)} of {cells} done; {side}: {left}"

    def run(self, data: Path | None) -> list[str]:
        """Run unfinished cells in parallel; return the errors, one line each.

        Args:
            data: Folder with the data sets' files, or None.
        """
        self._fetch()
        return self._run(self.todo, data, self.engine)

    def time_again(self, data: Path | None) -> list[str]:
        """Measure finished cells again, one by one; return the errors, one line each.

        Cells that ran in parallel were timed on a busy machine. Cells of other machines are
        skipped.

        Raises:
            UsageError: The engine is not of this machine.
        """
        if not isinstance(self.engine, LocalEngine) or self.storage:
            raise UsageError(
                "times are measured on one machine",
                where="--time-again",
                remedy="leave out --engine and --store",
            )
        chains = [c for c in self.cells if not c.overfit and c.is_done(self.out)]
        repeated = [cell for cell in chains if forget_times(cell, self.out, data)]
        for cell in chains:
            if cell not in repeated:
                say(f"{cell.name}: made on another machine, so its times stay")
        return self._run(repeated, data, LocalEngine(self.engine.devices[:1]))

    def _run(self, todo: list[Cell], data: Path | None, engine: Engine) -> list[str]:
        errors = list[str]()
        if not todo:
            return errors
        say(f"{len(todo)} cells to run; each writes {self.out / 'cells'}/NAME/log.txt")
        with progress("cells", len(todo)) as tick:

            def finished(cell: Cell, error: str | None) -> None:
                tick.advance()
                say(f"{tick.done}/{tick.total} {cell.name}: {error or 'done'}")
                if error:
                    errors.append(f"{cell.name}: {error}")

            engine.run(todo, Work(self.out, data, self.storage), finished)
        return errors

    def _fetch(self) -> None:
        """Copy cells that other machines have finished."""
        if self.storage is None:
            return
        remote = Remote(self.storage)
        remote.check()
        there = set(remote.versions(REMOTE_CELLS))
        for cell in self.todo:
            if cell.remote_name in there:
                remote.fetch(cell.remote_name, cell.folder(self.out))

    def demonstrate(self, data: Path | None) -> None:
        """Scan with masks that are not applied, once for each finished network and data set."""
        for cell in self.cells:
            if not cell.overfit and cell.recipe.seed == 0 and cell.is_done(self.out):
                demonstrate(cell, self.out, data, self.engine.device, self.storage)

    def report(self) -> Path:
        """Write tables, figures and pages from the finished cells."""
        return write_reproduction(self.out, [cell.name for cell in self.cells])


def study(
    *,
    networks: Iterable[str] = (),
    datasets: Iterable[str] = (),
    preset: str = "quick",
    seeds: int = 1,
    tables: str = "",
    out: Path = Path("runs/reproduce"),
    device: str = "auto",
    jobs: int | None = None,
    sets: list[str] | None = None,
    engine: Engine | None = None,
    storage: str | None = None,
) -> Study:
    """Choose the cells and devices.

    Args:
        networks: Among :data:`secateur.study.published.NETWORKS`; empty for all.
        datasets: Among :data:`secateur.study.published.DATASETS`; empty for all.
        preset: One of :data:`PRESETS`.
        seeds: Number of seeds, from 0.
        tables: Numbers of published tables, separated by commas; empty for all six.
        out: Output folder.
        device: See :func:`secateur.environment.choose_device`; ``auto`` uses all GPUs.
        jobs: Number of parallel cells; None for one per GPU, or one per two cores.
        sets: ``key=value`` overrides of every recipe.
        engine: What runs the cells; None for processes of this machine.
        storage: URL of an object storage that shares results between machines, or None.

    Raises:
        SecateurError: A name is unknown.
    """
    networks = _known("--network", networks, NETWORKS)
    datasets = _known("--dataset", datasets, DATASETS)
    _known("--preset", [preset], PRESETS)
    numbers = _known("--tables", [t for t in tables.split(",") if t], [str(t) for t in TABLES])
    chosen = cells(networks, datasets, preset, seeds, map(int, numbers), sets)
    return Study(chosen, out, engine or local_engine(device, jobs), storage)


def _known(option: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Check the names of an option; without any, return all known ones."""
    chosen, known = list(names), list(known)
    for name in chosen:
        if name not in known:
            raise SecateurError(
                "unknown name", where=option, found=name, expected=f"of {', '.join(known)}"
            )
    return chosen or known


def local_engine(device: str, jobs: int | None) -> LocalEngine:
    """Processes of this machine, ``jobs`` at a time; None for one on each GPU, or two cores."""
    where = choose_device(device)
    if where.type != "cuda":
        return LocalEngine([str(where)] * (jobs or max(1, cores() // 2)))
    every = range(torch.cuda.device_count()) if device == "auto" else [where.index or 0]
    names = [f"cuda:{index}" for index in every]
    return LocalEngine([names[index % len(names)] for index in range(jobs or len(names))])
