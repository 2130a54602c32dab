"""Stage outputs: folders named by stage and content id, written once, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur import environment
from secateur.errors import StoreError
from secateur.recipe import content_id

MANIFEST = "stage.json"


@dataclass(frozen=True)
class Stage:
    """A finished stage: a folder whose files nobody changes any more.

    Attributes:
        name: For example ``train`` or ``prune-2``.
        id: Content id of everything that decides the outcome.
        folder: Where the files are.
        fresh: Made just now, not found.
    """

    name: str
    id: str
    folder: Path
    fresh: bool = False

    def json(self, file: str) -> Any:
        """Read one of the stage's JSON files."""
        return json.loads((self.folder / file).read_text(encoding="utf-8"))

    def tensors(self, file: str) -> dict[str, Tensor]:
        """Read one of the stage's safetensors files."""
        return load_tensors(self.folder / file)

    @property
    def manifest(self) -> dict[str, Any]:
        """Who made it, where, in how long, from what."""
        return self.json(MANIFEST)


class Store:
    """A folder of finished stages.

    A stage is made in ``NAME-ID.partial`` and renamed when whole. What a killed run left there (a
    checkpoint, say) is offered to the next one; it is never mistaken for a result.

    Args:
        root: Created where missing.
        wait: Where another process makes a stage, wait until it is there; else that is an error.
        find_only: A stage that is not there is an error, instead of being made.

    Attributes:
        made_any: Whether any stage was made, rather than found, so far.

    Raises:
        StoreError: The folder cannot be written.
    """

    def __init__(self, root: Path, wait: bool = False, find_only: bool = False) -> None:
        self.root, self.wait, self.find_only = root, wait, find_only
        self.made_any = False
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StoreError(
                "cannot write to output folder",
                where=root,
                found=error.strerror,
                remedy="see --out",
            ) from error

    def stage(
        self,
        name: str,
        says: Mapping[str, Any],
        upstream: Mapping[str, Stage],
        make: Callable[[Path], None],
    ) -> Stage:
        """Return the stage, making it only where it is not there yet.

        Args:
            name: The stage's name.
            says: The part of the recipe that decides its outcome, plain data.
            upstream: The stages it reads.
            make: Writes the stage's files into the folder it is given, which may hold what an
                earlier, killed attempt left.

        Raises:
            StoreError: The stored files are damaged, another process is making the same stage, or
                the stage is not there and this store only finds.
        """
        key = {"says": dict(says), "upstream": {k: stage.id for k, stage in upstream.items()}}
        identity = content_id({"stage": name.split("-")[0], **key})
        folder = self.root / f"{name}-{identity}"
        if (folder / MANIFEST).exists():
            return Stage(name, _verified(folder, identity), folder)
        if self.find_only:
            raise StoreError("no such stage", where=folder, remedy="make it where it was made")
        partial = folder.with_name(folder.name + ".partial")
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=-1 if self.wait else 0)
        except Timeout:
            raise StoreError(
                "another process is making this stage",
                where=folder,
                remedy="wait for it, or choose another --out",
            ) from None
        try:
            if (folder / MANIFEST).exists():  # made by the one that was waited for
                return Stage(name, _verified(folder, identity), folder)
            partial.mkdir(exist_ok=True)
            start = time.monotonic()
            make(partial)
            self._finish(name, identity, key, partial, folder, time.monotonic() - start)
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
        self.made_any = True
        return Stage(name, identity, folder, fresh=True)

    def _finish(
        self,
        name: str,
        identity: str,
        key: Mapping[str, Any],
        partial: Path,
        folder: Path,
        seconds: float,
    ) -> None:
        files = {file.name: _digest(file) for file in sorted(partial.iterdir())}
        manifest = {
            "stage": name,
            "id": identity,
            **key,
            "files": files,
            "seconds": round(seconds, 3),
            "processor": environment.processor(),
            "threads": environment.threads(),
            "versions": environment.versions(),
            "commit": environment.commit(),
        }
        write_json(partial / MANIFEST, manifest)
        if folder.exists():  # without a manifest: not ours to trust, and in the way
            shutil.rmtree(folder)
        partial.replace(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(folder: Path, identity: str) -> str:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damaged = [
            name
            for name, digest in manifest["files"].items()
            if not (folder / name).exists() or _digest(folder / name) != digest
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        damaged = [MANIFEST]
    if damaged:
        raise StoreError(
            "stored stage is damaged",
            where=folder / damaged[0],
            remedy="delete the folder; the next run makes it again",
        )
    return identity


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON; the file is whole or not there."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; the file is whole or not there."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data``; the file is whole or not there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        StoreError: The file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError("cannot read", where=path, found=error) from error


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, from any device; the file is whole or not there.

    Raises:
        StoreError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    # Cloned, because views of one storage (masks of a group, say) are refused.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, temporary, metadata)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StoreError("cannot write", where=path, found=error) from error
    temporary.replace(path)
