"""Stores stage outputs: folders named by stage and content id, written once, atomically."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur import environment
from secateur.console import say
from secateur.disk import TEMPORARY, flush, replacing, write_bytes, write_json, write_text
from secateur.errors import StoreError
from secateur.recipe import content_id
from secateur.remote import Remote

__all__ = [
    "MANIFEST",
    "Stage",
    "Store",
    "load_tensors",
    "save_tensors",
    "write_bytes",
    "write_json",
    "write_text",
]

MANIFEST = "stage.json"
REMOTE_STAGES = "stages"


@dataclass(frozen=True)
class Stage:
    """A finished stage: a folder of immutable files.

    Attributes:
        name: For example ``train`` or ``prune-2``.
        id: Content id of everything that determines the result.
        folder: Folder of the files.
        fresh: Whether the stage was made now, not reused.
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
        """Machine, versions, duration and inputs of the stage."""
        return self.json(MANIFEST)


class Store:
    """A folder of finished stages.

    A stage is made in ``NAME-ID.partial`` and renamed when it is complete and flushed to the disk.
    Files left there by a killed run, such as a checkpoint, are available to the next run, but are
    not a result.

    Floating-point sums depend on the number of threads. A stage made with another number of threads
    than this process is therefore not reused: it is made again in ``NAME-ID-Nthreads``. Stages
    without inputs only select data and are always reused.

    Args:
        root: Folder of stages; created if missing.
        wait: Wait if another process makes the stage; otherwise raise an error.
        find_only: Raise an error instead of making a missing stage.
        any_threads: Reuse stages made with any number of threads.
        remote: Object storage that shares stages with other machines; ``root`` has copies.

    Attributes:
        made_any: Whether any stage was made, not reused.

    Raises:
        StoreError: The folder cannot be written.
    """

    def __init__(
        self,
        root: Path,
        wait: bool = False,
        find_only: bool = False,
        any_threads: bool = False,
        remote: Remote | None = None,
    ) -> None:
        self.root, self.wait, self.find_only, self.remote = root, wait, find_only, remote
        self.any_threads = any_threads or find_only
        self.made_any = False
        try:
            root.mkdir(parents=True, exist_ok=True)
            with replacing(root / ".probe") as probe:
                probe.touch()
            (root / ".probe").unlink(missing_ok=True)
        except (OSError, StoreError) as error:
            raise StoreError(
                "cannot write to output folder",
                where=root,
                found=getattr(error, "strerror", None) or error.__cause__ or error,
                remedy="see --out",
            ) from error

    def stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        upstream: Mapping[str, Stage],
        make: Callable[[Path], None],
    ) -> Stage:
        """Return the stage; make it if missing.

        Args:
            name: The stage's name.
            settings: The part of the recipe that determines the result, plain data.
            upstream: The stages it reads.
            make: Writes the stage's files into a folder, which may have files of a killed attempt.

        Raises:
            StoreError: The stored files are damaged, another process is making the same stage, or
                the stage is missing and ``find_only`` is set.
        """
        key = {"says": dict(settings), "upstream": {k: stage.id for k, stage in upstream.items()}}
        identity = content_id({"stage": name.split("-")[0], **key})
        while True:
            folder = self._folder(name, identity, bool(upstream))
            if (folder / MANIFEST).exists():
                self._share(folder, f"{name}-{identity}")
                return _verified(name, identity, folder)
            if self.find_only:
                raise StoreError("no such stage", where=folder, remedy="make it where it was made")
            with self._lock(folder), self._remote_lock(folder, f"{name}-{identity}"):
                # made meanwhile, or fetched: perhaps with another number of threads
                chosen = self._folder(name, identity, bool(upstream))
                if not (chosen / MANIFEST).exists() and chosen == folder:
                    facts = self._make(folder, make)
                    self._finish({"stage": name, "id": identity, **key}, facts, folder)
                    self.made_any = True
                    return Stage(name, identity, folder, fresh=True)

    def _make(self, folder: Path, make: Callable[[Path], None]) -> dict[str, Any]:
        """Let ``make`` write into the unfinished folder; return how long it took, and threads."""
        partial = _partial(folder)
        partial.mkdir(exist_ok=True)
        for unfinished in (partial / MANIFEST, *partial.glob(f".*{TEMPORARY}")):
            unfinished.unlink(missing_ok=True)
        start, threads = time.monotonic(), environment.threads()
        make(partial)
        return {"seconds": round(time.monotonic() - start, 3), "threads": threads}

    def _folder(self, name: str, identity: str, depends_on_threads: bool) -> Path:
        """The folder of the stage for the threads of this process."""
        first, current = self.root / f"{name}-{identity}", environment.threads()
        if _threads(first) == current:  # the usual case; listing a large store is slow
            return first
        versions = [first, *sorted(self.root.glob(f"{first.name}-*threads"))]
        finished = {
            threads: folder
            for folder in reversed(versions)
            if (threads := _threads(folder)) is not None
        }
        if not finished or current in finished or not depends_on_threads:
            return finished.get(current) or next(iter(finished.values()), first)
        if _DAMAGED in finished:
            return finished[_DAMAGED]
        if self.any_threads:
            return first if first in finished.values() else next(iter(finished.values()))
        others = ", ".join(map(str, sorted(finished)))
        say(f"{name}: stored with {others} threads, this process has {current}: not reused")
        return first.with_name(f"{first.name}-{current}threads")

    @contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        """Hold the stage's lock. The file is kept, because others may wait for it."""
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=-1 if self.wait else 0)
        except Timeout:
            raise StoreError(
                "another process is making this stage",
                where=folder,
                remedy="wait for it, or choose another --out",
            ) from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _remote_lock(self, folder: Path, group: str) -> Iterator[None]:
        """Fetch the stage, or hold its lock in the object storage; nothing where there is none."""
        if self.remote is None or self._fetched(folder, group):
            yield
            return
        with self.remote.lock(_remote_name(folder, group), self.wait):
            self._fetched(folder, group)
            yield

    def _fetched(self, folder: Path, group: str) -> bool:
        """Copy each version of a stage that is not here; whether there was any."""
        assert self.remote is not None
        names = self.remote.versions(f"{REMOTE_STAGES}/{group}")
        for name in names:
            copy = folder.with_name(name.rpartition("/")[2])
            if not (copy / MANIFEST).exists():
                self.remote.fetch(name, copy)
        return bool(names)

    def _share(self, folder: Path, group: str) -> None:
        """Upload a stage that only this machine has."""
        if self.remote is not None and not self.remote.has(_remote_name(folder, group)):
            self.remote.publish(_remote_name(folder, group), folder)

    def _finish(self, key: dict[str, Any], facts: dict[str, Any], folder: Path) -> None:
        """Write the manifest, flush everything, share it, and give the folder its name."""
        partial = _partial(folder)
        files = sorted(partial.iterdir())
        manifest = {
            **key,
            "files": {file.name: _digest(file) for file in files},
            **facts,
            "processor": environment.processor(),
            "versions": environment.versions(),
            "commit": environment.commit(),
        }
        for file in files:
            flush(file)
        write_json(partial / MANIFEST, manifest | {"checksum": _checksum(manifest)})
        if self.remote is not None:
            name = _remote_name(folder, f"{key['stage']}-{key['id']}")
            if not self.remote.publish(name, partial):  # another was first: that one counts
                shutil.rmtree(partial)
                self.remote.fetch(name, folder)
                return
        if folder.exists():  # without a manifest it is no result, and in the way
            shutil.rmtree(folder)
        partial.replace(folder)
        flush(folder.parent)


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _remote_name(folder: Path, group: str) -> str:
    """Name of a stage in an object storage: its versions for numbers of threads lie together."""
    return f"{REMOTE_STAGES}/{group}/{folder.name}"


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Content id of a manifest without its own checksum."""
    return content_id({key: value for key, value in manifest.items() if key != "checksum"})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_DAMAGED = 0
"""Number of threads of a stage whose manifest cannot be read."""


def _threads(folder: Path) -> int | None:
    """The number of threads of a stored stage, or None."""
    try:
        return int(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["threads"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return _DAMAGED  # the error is raised when it is read


def _verified(name: str, identity: str, folder: Path) -> Stage:
    """Return a stored stage after checking its id and checksums.

    Raises:
        StoreError: A file is damaged; the message names the first one.
    """
    damaged = _damaged(name, identity, folder)
    if damaged is not None:
        raise StoreError(
            "stored stage is damaged",
            where=folder / damaged,
            remedy="delete the folder; the next run makes it again",
        )
    return Stage(name, identity, folder)


def _damaged(name: str, identity: str, folder: Path) -> str | None:
    """The name of the first file of a stored stage that is missing, changed or not listed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        key = {"stage": name.split("-")[0], "says": manifest["says"]}
        computed = content_id({**key, "upstream": manifest["upstream"]})
        checksum = manifest.get("checksum", _checksum(manifest))  # version 0.1.0 had none
        expected = (name, identity, identity, checksum)
        if expected != (manifest["stage"], manifest["id"], computed, _checksum(manifest)):
            return MANIFEST
        files: dict[str, str] = manifest["files"]
        present = {path.name for path in folder.iterdir()} - {MANIFEST}
        wrong = present.symmetric_difference(files)
        return next(
            (file for file in sorted(present | set(files))
             if file in wrong or _digest(folder / file) != files[file]), None
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return MANIFEST


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
    """Write tensors of any device as safetensors, atomically.

    Raises:
        StoreError: The disk is full or the folder cannot be written.
    """
    # Cloned, because safetensors rejects views of one storage, such as masks of a group.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:
            raise StoreError("cannot write", where=path, found=error) from error
