"""Runs tasks in separate processes, so that a crash does not stop a run."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


def apart(task: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run ``task`` in a separate process; return its result or its error."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(task, *arguments).result()
        except Exception as error:  # a peer may raise anything
            return {"error": in_one_line(error)}


def in_one_line(error: BaseException) -> str:
    """The message of an exception, without local folders."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return re.sub(r"(/[\w.@+~-]+)+/", "", message)[:300]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep the tools' progress bars and warnings off the terminal."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
