"""The demo as a folder of static files, which any web server can serve."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from secateur.artifact.classifier import Classifier, load
from secateur.demo.npm import RUNTIME, fetch_package
from secateur.disk import check_input, write_bytes, write_json

WEB = Path(__file__).parent / "web"


def write_site(packed: Path, folder: Path, reference: Path | None = None) -> Path:
    """Write the demo of a packed network.

    The page requests files from its own folder only; a content security policy enforces it.

    Args:
        packed: A ``.sec`` file.
        folder: Output folder; it is created if missing, and files of an earlier demo are replaced.
        reference: An ONNX file that takes the same input, shown next to the packed one.

    Returns:
        The page, ``folder/index.html``.

    Raises:
        SecateurError: A file is damaged or missing, onnxruntime-web cannot be fetched, or a file of
            the site would replace its source, or a link.
    """
    network = load(packed)
    if reference is not None:
        check_input(reference)
    sources = {"net.sec": packed}
    networks = [{"title": "Compressed", "file": "net.sec"}]
    if reference is not None:
        sources["reference.onnx"] = reference
        networks.append({"title": "Reference", "file": "reference.onnx"})
    sources |= {f"ort/{path.name}": path for path in fetch_package(RUNTIME)}
    sources |= {str(path.relative_to(WEB)): path for path in _web_files()}
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, source.read_bytes(), inputs=[source])
    write_json(folder / "demo.json", _describe(network, packed) | {"networks": networks})
    return folder / "index.html"


def _web_files() -> Iterator[Path]:
    """Yield the page's files; ``sec`` is a link in the repository and a folder when installed."""
    for folder, _, names in os.walk(WEB, followlinks=True):
        yield from (Path(folder) / name for name in names)


def _describe(network: Classifier, packed: Path) -> dict[str, object]:
    """Data for the page: title, classes and image preparation."""
    recipe = network.about.get("recipe")
    data = network.about.get("data")
    try:
        title = f"{recipe['network']['name']} on {data['name']}"  # type: ignore[index]
    except (KeyError, TypeError):
        title = packed.name
    return {
        "title": title,
        "classes": list(network.classes),
        "preparation": asdict(network.prepare),
    }
