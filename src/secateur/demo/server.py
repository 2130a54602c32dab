"""Serves a demo on loopback."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from secateur.demo.site import write_site
from secateur.errors import SecateurError

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Serves static files, isolated from other origins, without request logs."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing."""


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder on loopback during the context.

    Args:
        folder: Folder of static files.
        port: Port; 0 for any free one.

    Yields:
        The address, for example ``http://127.0.0.1:8000/``.

    Raises:
        SecateurError: The port is in use.
    """
    handler = partial(_Handler, directory=str(folder))
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise SecateurError(
            "cannot serve", where=f"{HOST}:{port}", found=error.strerror, remedy="try --port 0"
        ) from error
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve(packed: Path, reference: Path | None = None, port: int = 0) -> Iterator[str]:
    """Serve the demo of a packed network on loopback during the context.

    Args:
        packed: A ``.sec`` file.
        reference: An ONNX file to compare with.
        port: Port; 0 for any free one.

    Yields:
        The page's address.

    Raises:
        SecateurError: As :func:`secateur.demo.site.write_site` and :func:`served`.
    """
    with tempfile.TemporaryDirectory(prefix="secateur-demo-") as folder:
        write_site(packed, Path(folder), reference)
        with served(Path(folder), port) as address:
            yield address
