"""Verified checkpoints: damaged ones, and those of another training, are not loaded.

A checkpoint is one safetensors file. Its metadata hold the SHA-256 of all tensors and of the state,
and the content id of the training it belongs to. The preceding checkpoint is kept, for the case
that the newest one is damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from secateur.console import say
from secateur.errors import StoreError
from secateur.store import save_tensors

State = dict[str, Any]


def write_checkpoint(
    path: Path, training: str, tensors: Mapping[str, Tensor], state: State
) -> None:
    """Write a checkpoint, and keep the existing one at ``path`` as the preceding one.

    Args:
        path: The file, written atomically.
        training: Content id of the training.
        tensors: All tensors, on any device.
        state: Other state, as JSON values.
    """
    if path.exists():
        path.replace(_before(path))
    text = json.dumps(state)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"training": training, "state": text, "sha256": _digest(plain, text)}
    save_tensors(path, plain, metadata)


def read_checkpoint(path: Path, training: str) -> tuple[dict[str, Tensor], State] | None:
    """Read the newest valid checkpoint of ``training``, or return None.

    Rejected files are reported on stderr with the reason.
    """
    for candidate in (path, _before(path)):
        if not candidate.exists():
            continue
        try:
            return _read(candidate, training)
        except StoreError as error:
            say(f"checkpoint refused: {error}")
    return None


def remove_checkpoints(path: Path) -> None:
    """Delete the checkpoint at ``path`` and the preceding one."""
    for file in (path, _before(path)):
        file.unlink(missing_ok=True)


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _read(path: Path, training: str) -> tuple[dict[str, Tensor], State]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StoreError("not a whole safetensors file", where=path, found=error) from error
    if metadata.get("training") != training:
        raise StoreError(
            "another training's checkpoint",
            where=path,
            expected=training,
            found=metadata.get("training", "none"),
        )
    text = metadata.get("state", "")
    digest = _digest(tensors, text)
    if metadata.get("sha256") != digest:
        raise StoreError(
            "the checksum does not match",
            where=path,
            expected=metadata.get("sha256", "none")[:12],
            found=digest[:12],
        )
    return tensors, json.loads(text)


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    """SHA-256 over names, types, shapes and bytes of contiguous tensors on the CPU, and state."""
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
