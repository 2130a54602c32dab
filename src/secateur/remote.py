"""Object storage for folders that many machines share: whole or absent, made once.

    files/SHA256           a file of any folder, named by its content
    names/NAME/NAME.json   the files of one folder; written last, and only where it is not there yet
    locks/NAME/NUMBER      who makes a folder now

Any storage that fsspec reaches will do, provided that it writes an object only where there is none
(S3: ``If-None-Match: *``). Of two writers of one folder the first to write its list of files wins,
and both continue with that one. Locks only save work: what is stored is right without them.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import random
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.disk import flush
from secateur.errors import SecateurError, StoreError, UsageError

TRIES, PAUSE = 8, 0.1
"""Attempts of a request, and seconds before the second one; each pause is twice the one before."""

LEASE = 60.0
"""Seconds without a sign of life after which a lock's holder counts as dead."""

_SIGNS = 6  # signs of life in a lease


class Remote:
    """Folders in an object storage.

    Args:
        url: Such as ``s3://bucket/prefix``; credentials and endpoint are those of fsspec's package
            for it, from its own configuration and environment.
        lease: See :data:`LEASE`.

    Raises:
        UsageError: The URL is of no such storage, or the package for it is not installed.
    """

    def __init__(self, url: str, lease: float = LEASE) -> None:
        self.url, self.lease = url.rstrip("/"), lease
        self._files, base = _open(self.url)
        self._base = base.rstrip("/")

    def check(self) -> None:
        """Make sure, by a small object, that this storage can be read, written and locked.

        Raises:
            StoreError: It cannot; the message says what was refused.
        """
        path, own = self._path("probe", secrets.token_hex(8)), b"secateur"
        try:
            self._create(path, own)
        except FileNotFoundError as error:
            raise self._failed("no such place", error) from error
        self._create(path, b"another")
        stored = self._try(self._files.cat_file, path)
        self._try(self._files.rm_file, path)
        if stored != own:
            raise StoreError(
                "storage overwrites an object that it should keep",
                where=self.url,
                expected="conditional writes (If-None-Match)",
                remedy="use a storage with conditional writes, or a shared folder as --out",
            )

    def has(self, name: str) -> bool:
        """Whether a folder of this name is there, whole."""
        return bool(self._try(self._files.exists, self._list_of(name)))

    def versions(self, group: str) -> list[str]:
        """Names of the folders below ``group``, sorted: ``group/NAME``."""
        try:
            listed = self._try(self._files.ls, self._path("names", group), detail=False)
        except FileNotFoundError:
            return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in listed)
        return sorted(f"{group}/{n.removesuffix('.json')}" for n in names if n.endswith(".json"))

    def publish(self, name: str, folder: Path) -> bool:
        """Upload the files of a folder, its list last.

        Args:
            name: Such as ``stages/train-0123/train-0123``.
            folder: Holds files, and folders of files; names that begin with a dot stay here.

        Returns:
            Whether the storage now has this folder; False where another was first.

        Raises:
            StoreError: The storage refuses.
        """
        files = {}
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                files[relative.as_posix()] = digest = _digest(path)
                self._upload(path, self._path("files", digest))
        return self._create(self._list_of(name), json.dumps(files, indent=1).encode())

    def fetch(self, name: str, folder: Path) -> bool:
        """Download a folder; it replaces the one that is there, whole or not at all.

        Returns:
            Whether there is such a folder.

        Raises:
            StoreError: The storage refuses, or a file is not what its name says.
        """
        try:
            files = json.loads(self._try(self._files.cat_file, self._list_of(name)))
        except FileNotFoundError:
            return False
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
        try:
            for relative, digest in files.items():
                path = _inside(temporary, relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._try(self._files.get_file, self._path("files", digest), str(path))
                if _digest(path) != digest:
                    raise StoreError("stored file is damaged", where=self._path("files", digest))
                flush(path)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return True

    # ---- locks

    @contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[None]:
        """Hold the lock of a folder. It ends with its holder, at the latest after one lease.

        A holder rewrites its object several times a lease. Who waits watches that by its own
        clock, so that clocks need not agree, and creates the next number where it stops.

        Args:
            name: As in :meth:`publish`.
            wait: Until it is free; else a lock that somebody holds is an error.

        Raises:
            StoreError: Another process holds it, or the storage refuses.
        """
        folder, owner = self._path("locks", name), secrets.token_hex(8)
        number = self._acquire(folder, owner, wait)
        ended = threading.Event()
        alive = threading.Thread(target=self._live, args=(f"{folder}/{number}", owner, ended))
        alive.daemon = True
        alive.start()
        try:
            yield
        finally:
            ended.set()
            alive.join()
            self._remove(folder, up_to=number)

    def _acquire(self, folder: str, owner: str, wait: bool) -> int:
        last, since = None, time.monotonic()
        while True:
            number, sign = self._holder(folder)
            if sign != last:
                if last is not None and sign is not None and not wait:
                    raise StoreError(
                        "another process is making this stage",
                        where=folder,
                        remedy="wait for it, or choose another --store",
                    )
                last, since = sign, time.monotonic()
            if sign is None or time.monotonic() - since > self.lease:
                if self._create(f"{folder}/{number + 1}", owner.encode()):
                    self._remove(folder, up_to=number)
                    return number + 1
                continue
            time.sleep(self.lease / _SIGNS / 4 * random.uniform(0.5, 1))  # noqa: S311

    def _holder(self, folder: str) -> tuple[int, tuple[int, bytes] | None]:
        """Number of the newest lock, -1 of none, and what it says with its number."""
        numbers = self._numbers(folder)
        if not numbers:
            return -1, None
        newest = max(numbers)
        try:
            return newest, (newest, self._try(self._files.cat_file, f"{folder}/{newest}"))
        except FileNotFoundError:  # released meanwhile
            return self._holder(folder)

    def _live(self, path: str, owner: str, ended: threading.Event) -> None:
        beats = 0
        while not ended.wait(self.lease / _SIGNS):
            beats += 1
            with contextlib.suppress(Exception):  # the next one may get through
                self._files.pipe_file(path, f"{owner} {beats}".encode())

    def _remove(self, folder: str, up_to: int) -> None:
        for number in self._numbers(folder):
            if number <= up_to:
                with contextlib.suppress(FileNotFoundError):
                    self._try(self._files.rm_file, f"{folder}/{number}")

    def _numbers(self, folder: str) -> list[int]:
        try:
            listed = self._try(self._files.ls, folder, detail=False)
        except FileNotFoundError:
            return []
        return [int(name) for path in listed if (name := str(path).rpartition("/")[2]).isdigit()]

    # ---- requests

    def _path(self, *parts: str) -> str:
        return "/".join((self._base, *parts))

    def _list_of(self, name: str) -> str:
        return self._path("names", f"{name}.json")

    def _upload(self, path: Path, to: str) -> None:
        try:
            if self._try(self._files.info, to)["size"] == path.stat().st_size:
                return
        except FileNotFoundError:
            pass
        self._try(self._files.put_file, str(path), to)

    def _create(self, path: str, data: bytes) -> bool:
        """Write an object where there is none; whether it then holds ``data``."""

        def create() -> bool:
            try:
                self._files.pipe_file(path, data, mode="create")
            except OSError:
                # "exists" by another name, or a request that arrived and whose answer was lost
                if not self._files.exists(path):
                    raise
                return False
            return True

        return self._try(create) or self._try(self._files.cat_file, path) == data

    def _try(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a request, again where it fails."""
        for attempt in range(TRIES):
            try:
                return call(*arguments, **options)
            except FileNotFoundError:
                raise
            except PermissionError as error:
                raise self._failed("permission refused", error) from error
            except SecateurError:
                raise
            except Exception as error:  # each package raises its own
                if attempt + 1 == TRIES:
                    raise self._failed(f"{TRIES} failures", error) from error
            time.sleep(PAUSE * 2**attempt * random.uniform(0.5, 1))  # noqa: S311
        raise AssertionError

    def _failed(self, cause: str, error: Exception | None) -> StoreError:
        detail = " ".join(str(error or "").split())[:200]
        return StoreError(
            "storage cannot be used",
            where=self.url,
            found=f"{cause}: {detail}" if detail else cause,
            remedy="check the URL, the credentials and the endpoint",
        )


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, without a cache of listings, and the path in it."""
    import fsspec

    scheme, sign, _ = url.partition("://")
    if not sign or scheme in ("file", "local"):
        raise UsageError(
            "not an object storage",
            where="--store",
            found=url,
            expected="a URL such as s3://bucket/prefix",
            remedy="a folder that machines share is given as --out",
        )
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = "'secateur[s3]'" if scheme in ("s3", "s3a") else "fsspec's package for it"
        raise UsageError(
            f"storage of kind {scheme} is not installed",
            where=url,
            found=error,
            remedy=f"pip install {package}",
        ) from error
    except ValueError as error:
        raise UsageError("unknown kind of storage", where=url, found=error) from error
    write = getattr(kind, "_pipe_file", None) or kind.pipe_file
    if "mode" not in inspect.signature(write).parameters or write.__module__ == "fsspec.spec":
        raise UsageError(
            "a storage without conditional writes",
            where=url,
            expected="S3, Google Cloud Storage or Azure",
        )
    files, base = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return files, base


def _inside(folder: Path, relative: str) -> Path:
    """A path in ``folder``; names of an object storage may be anything."""
    path = folder / relative
    if ".." in path.parts or Path(relative).is_absolute():
        raise StoreError("stored name leaves its folder", found=relative)
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
