"""A real S3 server on the loopback, moto's, that answers a part of the requests with a failure."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Unreliable:
    """An application that answers 503 to a part of the requests, half of them after their effect.

    Attributes:
        requests: How many there were.
        failures: How many of them failed.
    """

    def __init__(self, application: Application, share: float, seed: int = 0) -> None:
        self._application, self._share = application, share
        self._draw = random.Random(seed)  # noqa: S311 - which requests fail
        self.requests = self.failures = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        self.requests += 1
        drawn = self._draw.random()
        if drawn < self._share:
            self.failures += 1
            if drawn < self._share / 2:
                list(self._application(environ, lambda *_: None))
            start("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        return self._application(environ, start)


@contextmanager
def s3_server(share: float = 0.0) -> Iterator[tuple[str, Unreliable]]:
    """A server on the loopback; ``share`` of its answers are failures.

    Yields:
        Its endpoint, and its counters.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    served = Unreliable(DomainDispatcherApplication(create_backend_app), share)
    server = make_server("127.0.0.1", 0, served, threaded=True)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}", served
    finally:
        server.shutdown()
        thread.join()
