"""Atomic writes and bounded reads of files.

Secateur writes every file by :func:`replacing`, except logs (:func:`open_log`): into a new file of
unpredictable name in the same folder (``O_EXCL``), which is flushed to the disk and then renamed;
the folder is flushed afterwards. A power failure leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import FileError, StoreError

TEMPORARY = ".tmp"
"""Suffix of unfinished files; their names start with a dot."""

_NAME_BYTES = 200
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Check that ``path`` can be written, before long work starts.

    Args:
        path: A new name in an existing folder, or a regular file to replace.
        inputs: Input files, which must not be replaced.

    Raises:
        FileError: ``path`` is a folder, link, FIFO or device, is one of ``inputs``, or its folder
            is missing.
    """
    for source in inputs:
        with contextlib.suppress(OSError):
            if path.samefile(source):
                raise _refused(path, "the input itself", "choose another name")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise _refused(path, "no such folder", "make the folder first") from None
        return
    except OSError as error:
        raise _refused(path, error.strerror) from error
    if not stat.S_ISREG(mode):
        raise _refused(path, _kind(mode), "choose another name")


@contextmanager
def replacing(path: Path, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield the path of a new empty file, which replaces ``path`` if the block succeeds.

    Args:
        path: See :func:`check_output`.
        inputs: See :func:`check_output`.

    Raises:
        FileError: ``path`` cannot be written.
        StoreError: The disk is full.
    """
    check_output(path, inputs)
    stem = os.fsencode(path.name)[:_NAME_BYTES].decode(errors="ignore")
    temporary = path.with_name(f".{stem}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        # The kernel applies the user's umask, as for any new file.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        raise StoreError("cannot write", where=path, found=error.strerror or error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, data: bytes, inputs: Iterable[Path] = ()) -> None:
    """Write ``data`` atomically. Raises the errors of :func:`replacing`."""
    with replacing(path, inputs) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with unchanged line feeds. Raises the errors of :func:`replacing`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON. Raises the errors of :func:`replacing`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def open_log(path: Path) -> int:
    """Open a file for appending; it is created if it is missing.

    Returns:
        A file descriptor, to be closed by the caller.

    Raises:
        FileError: ``path`` cannot be written, see :func:`check_output`.
    """
    check_output(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o666)
    except OSError as error:
        raise _refused(path, error.strerror) from error
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):  # replaced after the check
        os.close(number)
        raise _refused(path, _kind(mode))
    return number


def flush(path: Path) -> None:
    """Flush a file's bytes, or the entries of a folder, to the disk.

    Raises:
        OSError: The flush failed.
    """
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not all file systems support it
            raise
    finally:
        os.close(number)


def check_input(path: Path) -> None:
    """Check that ``path`` is a regular file or a link to one, before a library opens it.

    Raises:
        FileError: It is missing, or a folder, FIFO or device.
    """
    os.close(_open_regular(path))


def read_bytes(path: Path, limit: int, remedy: str | None = None) -> bytes:
    """Read a regular file of at most ``limit`` bytes; a FIFO or device is an error.

    Args:
        path: A regular file, or a link to one.
        limit: Largest size in bytes.
        remedy: Remedy in the error about a larger file.

    Raises:
        FileError: The file is missing, larger, or not a regular file.
    """
    with os.fdopen(_open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(data) > limit:
        raise FileError(
            "larger than allowed",
            where=path,
            expected=f"at most {limit:,} bytes",
            found=f"{size:,}",
            remedy=remedy,
        )
    return data


def _open_regular(path: Path) -> int:
    """Open a regular file and return its descriptor."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError("cannot read", where=path, found=reason) from error
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise FileError("cannot read", where=path, expected="a regular file", found=_kind(mode))
    return number


def _kind(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")


def _refused(path: Path, reason: object, remedy: str | None = None) -> FileError:
    return FileError(
        "cannot write", where=path, expected="a new name or a regular file", found=reason,
        remedy=remedy,
    )  # fmt: skip
