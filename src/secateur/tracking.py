"""Logs metrics to TensorBoard or MLflow while a command runs; by default nothing is logged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from secateur.errors import RecipeError, SecateurError

Log = Callable[[str, float, int], None]
"""Logs a value: name, value, step."""

_current: ContextVar[Log | None] = ContextVar("log", default=None)


def log_metrics(series: str, step: int, values: Mapping[str, float]) -> None:
    """Log values of one step as ``SERIES/NAME``.

    Args:
        series: What is measured, such as ``train``: letters, digits, spaces, ``.``, ``-``, ``_``.
        step: Counts from 1.
        values: Name to value.
    """
    log = _current.get()
    if log is not None:
        for name, value in values.items():
            log(f"{series}/{name}", value, step)


@contextmanager
def tracking(tool: str, folder: Path) -> Iterator[None]:
    """Log what :func:`log_metrics` is given inside this context.

    If several processes train together, the first one logs.

    Args:
        tool: ``tensorboard``, ``mlflow``, or empty to log nothing.
        folder: Its subfolder ``tensorboard`` receives event files, its ``mlflow.db`` the runs of
            MLflow unless ``MLFLOW_TRACKING_URI`` names another place.

    Raises:
        RecipeError: The tool is unknown.
        SecateurError: Its package is not installed.
    """
    if not tool or os.environ.get("RANK", "0") != "0":
        yield
        return
    if tool not in _TOOLS:
        raise RecipeError("unknown tool", where="--log", expected=" or ".join(_TOOLS), found=tool)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        log, close = _TOOLS[tool](folder)
    except ImportError as error:
        raise SecateurError(
            f"{tool} is not installed", where="--log", remedy=f"pip install 'secateur[{tool}]'"
        ) from error
    token = _current.set(log)
    try:
        yield
    finally:
        _current.reset(token)
        close()


def _tensorboard(folder: Path) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder / "tensorboard")
    return writer.add_scalar, writer.close


def _mlflow(folder: Path) -> tuple[Log, Callable[[], None]]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    mlflow.set_experiment("secateur")
    mlflow.start_run(run_name=folder.name)
    return mlflow.log_metric, mlflow.end_run


_TOOLS = {"tensorboard": _tensorboard, "mlflow": _mlflow}
