"""The demo as a folder of static files, which any web server can serve."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from secateur.artifact.classifier import Classifier, load
from secateur.demo.npm import RUNTIME, fetch_package
from secateur.errors import SecateurError

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
        SecateurError: A file is damaged or missing, or onnxruntime-web cannot be fetched.
    """
    network = load(packed)
    if reference is not None and not reference.is_file():
        raise SecateurError("no such file", where=reference, expected="an ONNX file")
    runtime = fetch_package(RUNTIME)
    shutil.copytree(WEB, folder, dirs_exist_ok=True)
    (folder / "ort").mkdir(exist_ok=True)
    for path in runtime:
        shutil.copyfile(path, folder / "ort" / path.name)
    shutil.copyfile(packed, folder / "net.sec")
    networks = [{"title": "Compressed", "file": "net.sec"}]
    if reference is not None:
        shutil.copyfile(reference, folder / "reference.onnx")
        networks.append({"title": "Reference", "file": "reference.onnx"})
    description = _describe(network, packed) | {"networks": networks}
    (folder / "demo.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    return folder / "index.html"


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
