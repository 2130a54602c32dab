"""Cells as tasks of a Ray cluster: Ray places them, and repeats those of a node that is lost.

A cell that is started again finds the stages that are stored, so that a lost node costs the stage
it was in. With a shared folder even that goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import secrets
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from secateur import environment
from secateur.console import say
from secateur.data.pixel_store import default_cache
from secateur.errors import SecateurError, StoreError, UsageError
from secateur.recipe import content_id
from secateur.remote import Remote
from secateur.study.engines import Finished, Work, run_logged
from secateur.study.grid import Cell
from secateur.wording import counted

PATIENCE = 15.0
"""Seconds in which a cluster's address must answer."""
NODE_PATIENCE = 120.0
"""Seconds in which every node must answer; the first task of a node imports torch."""
RETRIES = 20
"""Times that a cell is started again because its node or process is lost, before it has failed."""

_COMPARED = ("python", "secateur", "torch")


@dataclass(frozen=True)
class Needs:
    """What Ray reserves for one cell.

    Attributes:
        cpus: Cores, which are also the cell's threads.
        gpus: GPUs; with 0 the cell runs on the CPU.
        memory: Bytes; 0 reserves none.
    """

    cpus: int = 1
    gpus: int = 0
    memory: int = 0

    @property
    def options(self) -> dict[str, float]:
        """As options of a Ray task."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}

    def fit(self, resources: dict[str, float]) -> int:
        """How many cells a node with ``resources`` runs at a time."""
        pairs = (("CPU", self.cpus), ("GPU", self.gpus), ("memory", self.memory))
        return int(min(resources.get(name, 0) // need for name, need in pairs if need))


class RayEngine:
    """A cluster of Ray, or one that is started on this machine for the length of a run.

    Args:
        address: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None for ``RAY_ADDRESS``, or else
            this machine.
        needs: Of each cell.

    Raises:
        UsageError: Ray is not installed.
    """

    device = "cpu"

    def __init__(self, address: str | None = None, needs: Needs | None = None) -> None:
        self.needs, self.slots = needs or Needs(), 1
        self.address = address or os.environ.get("RAY_ADDRESS")
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise UsageError(
                "Ray is not installed", where="--engine ray", remedy="pip install 'secateur[ray]'"
            ) from error

    def describe(self) -> str:
        """See :class:`secateur.study.engines.Engine`."""
        return f"on Ray at {self.address or 'this machine'}; one at a time"

    def run(self, todo: list[Cell], work: Work, finished: Finished) -> None:
        """See :class:`secateur.study.engines.Engine`."""
        import ray

        work = Work(work.out.absolute(), work.data and work.data.absolute(), work.storage)
        device = "cuda" if self.needs.gpus else "cpu"
        with self._connected():
            self._check(work)
            # One process a cell, as on one machine: its memory and its crashes are its own.
            task = ray.remote(max_calls=1, max_retries=RETRIES, **self.needs.options)(_cell)
            started = {task.remote(cell, work, device, self.needs.cpus): cell for cell in todo}
            left = list(started)
            try:
                while left:
                    ended, left = ray.wait(left, num_returns=1, fetch_local=False)
                    for reference in ended:
                        cell = started[reference]
                        finished(cell, _result(reference, cell, work))
            except BaseException:  # Ctrl-C: start no other cell, and end those that run
                for reference in left:
                    ray.cancel(reference, force=True)
                raise

    @contextmanager
    def _connected(self) -> Iterator[None]:
        import ray

        _answers(self.address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own future changes
            try:
                # Without an address Ray would look for a running cluster, and wait for minutes for
                # one that was killed and left its address behind.
                context = ray.init(
                    self.address or "local",
                    log_to_driver=False, logging_level="ERROR", namespace="secateur",
                )  # fmt: skip
            except Exception as error:  # ConnectionError, RuntimeError of versions, and others
                raise _no_cluster(self.address, error) from error
        try:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            self.slots = sum(self.needs.fit(node["Resources"]) for node in nodes)
            url = getattr(context, "dashboard_url", "")
            shown = f"http://{url}" if url else "none: pip install 'ray[default]'"
            size = f"{counted(len(nodes), 'node')}, {counted(self.slots, 'cell')} at a time"
            say(f"Ray: {size}; dashboard: {shown}")
            yield
        finally:
            ray.shutdown()

    # ---- before work starts

    def _check(self, work: Work) -> None:
        """Ask every node whether it can run cells.

        Raises:
            SecateurError: One cannot; the message names it.
        """
        if not self.slots:
            raise UsageError(
                "no node has what a cell needs",
                where=f"Ray at {self.address or 'this machine'}",
                expected=", ".join(f"{k} {v:g}" for k, v in self.needs.options.items() if v),
                remedy="lower --cpus, --gpus or --memory, or add a node",
            )
        work.out.mkdir(parents=True, exist_ok=True)
        if work.storage:
            Remote(work.storage).check()
            _every_node(_check_node, work, "", environment.versions())
            return
        token, lock = secrets.token_hex(8), FileLock(work.out / ".nodes.lock")
        with lock:
            (work.out / ".nodes").write_text(token, encoding="utf-8")
            _every_node(_check_node, work, token, environment.versions())
        (work.out / ".nodes").unlink(missing_ok=True)


def _answers(address: str | None) -> None:
    """Make sure that something listens there; Ray itself would try for minutes."""
    host, sign, port = (address or "").removeprefix("ray://").rpartition(":")
    if not sign or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> UsageError:
    return UsageError(
        "no Ray cluster answers",
        where=f"--address {address or ''}".strip(),
        found=_first_line(error),
        remedy="start one with `ray start --head`, or leave --address out",
    )


def _every_node(check: Callable[..., str | None], *arguments: Any) -> None:
    """Run a small task on every node; one that is lost meanwhile is skipped, as Ray will do.

    Raises:
        SecateurError: A node does not answer, or says that something is wrong.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for identity, address in _nodes().items():
        here = NodeAffinitySchedulingStrategy(identity, soft=False)
        task = ray.remote(num_cpus=0, max_calls=1, scheduling_strategy=here)(check)
        asked[task.remote(*arguments)] = identity, address
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_PATIENCE)
    for reference in answered:
        identity, address = asked[reference]
        try:
            wrong = ray.get(reference)
        except Exception as error:  # whatever the node raises: Secateur may not be there at all
            if identity not in _nodes():
                say(f"node {address} is lost")
                continue
            wrong = _first_line(getattr(error, "cause", None) or error)
        if wrong:
            raise SecateurError("a node cannot run cells", where=address, found=wrong)
    if silent:
        _, address = asked[silent[0]]
        raise SecateurError(
            "a node does not answer", where=address, expected=f"within {NODE_PATIENCE:g} s"
        )


def _nodes() -> dict[str, str]:
    """Identity and name of each node that is alive and has cores."""
    import ray

    return {
        node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    }


def _check_node(work: Work, token: str, versions: dict[str, str]) -> str | None:
    """What is wrong with this node, or None."""
    own = environment.versions()
    for name in _COMPARED:
        if own[name] != versions[name]:
            return f"{name} {own[name]}, where this process has {versions[name]}"
    if work.data and not work.data.is_dir():
        return f"no data folder {work.data}"
    try:
        if work.storage:
            Remote(work.storage).check()
            return None
        return _shared(work.out, token)
    except SecateurError as error:
        return str(error)


def _shared(out: Path, token: str) -> str | None:
    """Whether this node sees the folder of the process that asks, and its locks."""
    try:
        token_here = (out / ".nodes").read_text(encoding="utf-8")
    except OSError:
        token_here = ""
    if token_here != token:
        return f"the folder {out} is not shared; put --out on a shared folder or give --store"
    try:
        FileLock(out / ".nodes.lock").acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        return f"the folder {out} has no locks ({error}); mount it with locks or give --store"
    return f"locks of the folder {out} do not hold between nodes; give --store"


# ---- on a node


def _cell(cell: Cell, work: Work, device: str, threads: int) -> str | None:
    return run_logged(cell, work if work.storage is None else _copies(work), device, threads)


def _copies(work: Work) -> Work:
    """The same work with this node's own folder for copies of what is stored."""
    folder = default_cache().with_name("stages") / content_id(work.storage)
    return Work(folder, work.data, work.storage)


# ---- back in the process that asked


def _result(reference: Any, cell: Cell, work: Work) -> str | None:
    """The error of a cell that ended, in one line, or None; its folder is fetched."""
    import ray

    try:
        error = ray.get(reference)
        if error is None and work.storage is not None:
            Remote(work.storage).fetch(cell.remote_name, cell.folder(work.out))
    except StoreError as failed:
        return str(failed)
    except Exception as failed:  # a killed worker, or a bug in a cell, stops no other
        where = cell.folder(work.out) / "log.txt"
        return f"{type(failed).__name__}: {_first_line(failed)}; see {where}"
    return error


def _first_line(error: BaseException) -> str:
    """The last line of an error that says something; Ray's messages have a traceback first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
