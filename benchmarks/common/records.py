"""Records of benchmarks, one JSON line each, and encoding of boolean vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur import environment

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a file; empty if it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append(path: Path, record: Record, packages: Iterable[str]) -> None:
    """Append one record with its environment and the versions of ``packages``."""
    about = {
        "processor": environment.processor(),
        "versions": environment.versions() | _installed(packages),
        "commit": environment.commit(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record | about) + "\n")


def _installed(packages: Iterable[str]) -> dict[str, str]:
    installed = {}
    for name in packages:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # recorded in its row
    return installed


def is_there(path: Path, cell: Record) -> bool:
    """Whether the file has a record of this cell."""
    return any(cell.items() <= record.items() for record in read(path))


def pack(right: npt.NDArray[np.bool_]) -> str:
    """Bits, eight a byte, in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack(packed: str, images: int) -> npt.NDArray[np.bool_]:
    """Whether each image is classified correctly."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8))
    return bits[:images].astype(bool)
