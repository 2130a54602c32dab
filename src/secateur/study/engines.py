"""Where cells run: the interface of an engine, and the engine of this machine's processes.

An engine schedules cells. It knows nothing of their results: the store makes a stage once,
whichever process asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from queue import Queue
from typing import Protocol

import torch

from secateur.disk import open_log
from secateur.errors import SecateurError
from secateur.study.grid import Cell, run_cell

Finished = Callable[[Cell, str | None], None]
"""Called after each cell with its error in one line, or None."""


@dataclass(frozen=True)
class Work:
    """What all cells of a run share.

    Attributes:
        out: See :func:`secateur.study.grid.run_cell`.
        data: See :func:`secateur.study.grid.run_cell`.
        storage: See :func:`secateur.study.grid.run_cell`.
    """

    out: Path
    data: Path | None = None
    storage: str | None = None


class Engine(Protocol):
    """Runs cells, several at a time.

    Attributes:
        device: On which this process itself trains and evaluates, as in
            :func:`secateur.environment.choose_device`.
        slots: Cells at a time.
    """

    device: str
    slots: int

    def describe(self) -> str:
        """In a few words, for example ``2 at a time on cpu``."""
        ...

    def run(self, todo: list[Cell], work: Work, finished: Finished) -> None:
        """Run cells; the failure of one stops no other, and its error is passed to ``finished``.

        Output of a cell goes to ``cells/NAME/log.txt``.

        Args:
            todo: The cells, in the order in which they are started.
            work: What they share.
            finished: Called when a cell ends.

        Raises:
            SecateurError: No cell can run; nothing was started.
        """
        ...


class LocalEngine:
    """Processes of this machine.

    Args:
        devices: One entry for each process: ``cpu``, ``cpu`` for two; ``cuda:0``, ``cuda:1``.
    """

    def __init__(self, devices: list[str]) -> None:
        self.devices, self.device, self.slots = devices, devices[0], len(devices)

    def describe(self) -> str:
        """See :class:`Engine`."""
        return f"{self.slots} at a time on {', '.join(sorted(set(self.devices)))}"

    def run(self, todo: list[Cell], work: Work, finished: Finished) -> None:
        """See :class:`Engine`."""
        free, threads = Queue[str](), max(1, torch.get_num_threads() // self.slots)
        for device in self.devices:
            free.put(device)

        def run_one(cell: Cell) -> str | None:
            device = free.get()
            try:
                # A process for each cell isolates its memory and its crashes.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    return pool.submit(run_logged, cell, work, device, threads).result()
            except Exception as error:  # a killed cell, or a bug in one, stops no other
                return f"{type(error).__name__}: {error}; see {cell.folder(work.out) / 'log.txt'}"
            finally:
                free.put(device)

        with ThreadPoolExecutor(self.slots) as threads_of_cells:
            started = {threads_of_cells.submit(run_one, cell): cell for cell in todo}
            try:
                for future in as_completed(started):
                    finished(started[future], future.result())
            except BaseException:  # Ctrl-C: start no other cell
                threads_of_cells.shutdown(wait=False, cancel_futures=True)
                for child in active_children():  # a signal may have reached this process alone
                    child.terminate()
                raise


def run_logged(cell: Cell, work: Work, device: str, threads: int) -> str | None:
    """Run a cell in this process with output to its log; return the error in one line, or None."""
    folder = cell.folder(work.out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    try:
        log = open_log(folder / "log.txt")
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        run_cell(cell, work.out, work.data, device, work.storage)
    except SecateurError as error:
        return str(error)
    return None
