"""Writing replaces files whole, and nothing but regular files; reading keeps to its bounds."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from helpers.power_cut import PowerCut, power_cuts
from secateur.disk import (
    check_output,
    open_log,
    read_bytes,
    write_bytes,
    write_json,
    write_text,
)
from secateur.errors import StoreError


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä\r\n")
    write_json(tmp_path / "b.json", {"name": "\udcff"})
    assert read_bytes(tmp_path / "a.txt", 4) == b"\xc3\xa4\r\n"
    assert (tmp_path / "b.json").read_text() == '{\n "name": "\\udcff"\n}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.json"]


def test_a_new_file_has_the_mode_that_the_user_asked_for(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def _link(path: Path) -> None:
    (path.parent / "victim").write_text("dear")
    path.symlink_to(path.parent / "victim")


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (_link, "a symbolic link"),
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a folder"),
    ],
)
def test_only_regular_files_are_replaced(tmp_path: Path, make, found: str) -> None:
    path = tmp_path / "out"
    make(path)
    before = path.lstat()
    for write in (lambda: write_bytes(path, b"new"), lambda: open_log(path)):
        with pytest.raises(StoreError, match=f"cannot write.*found {found}"):
            write()
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    if found == "a symbolic link":
        assert (tmp_path / "victim").read_text() == "dear"


def test_a_log_grows_and_what_takes_its_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.txt"
    for _ in range(2):
        with os.fdopen(open_log(path), "a") as log:
            log.write("line\n")
    assert path.read_text() == "line\nline\n"
    monkeypatch.setattr("secateur.disk.check_output", lambda path: None)  # it came after the check
    for make in (_link, os.mkfifo, os.mkdir):
        path.rename(tmp_path / f"before-{make.__name__}")
        make(path)
        with pytest.raises(StoreError, match="cannot write"):
            open_log(path)
    reader = os.open(tmp_path / "before-mkdir", os.O_RDONLY | os.O_NONBLOCK)  # now it can be opened
    with pytest.raises(StoreError, match="found a FIFO"):
        open_log(tmp_path / "before-mkdir")
    os.close(reader)


def test_a_device_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found a device"):
        write_bytes(Path("/dev/null"), b"new")
    with pytest.raises(StoreError, match="found no such folder"):
        check_output(tmp_path / "none" / "out")


def test_the_input_is_not_replaced(tmp_path: Path) -> None:
    source, link = tmp_path / "in", tmp_path / "link"
    source.write_text("dear")
    link.hardlink_to(source)
    for path in (source, link):
        with pytest.raises(StoreError, match="found the input itself"):
            write_bytes(path, b"new", [source])
    assert source.read_text() == "dear"


def test_a_planted_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.disk.secrets.token_hex", lambda count: "guessed")
    (tmp_path / "victim").write_text("dear")
    (tmp_path / ".out.guessed.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="File exists"):
        write_bytes(tmp_path / "out", b"new")
    assert (tmp_path / "victim").read_text() == "dear"


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "out").write_text("old")
    monkeypatch.setattr("secateur.disk.os.fsync", full)
    with pytest.raises(StoreError, match=r"cannot write \(.*out\): found No space left"):
        write_bytes(tmp_path / "out", b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "old")]


def test_a_power_cut_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Whatever was not flushed is lost, at every moment of writing."""
    seen = set()
    for cut in power_cuts(tmp_path):
        path = tmp_path / "out"
        path.unlink(missing_ok=True)
        write_bytes(path, b"old")
        try:
            with cut:
                write_bytes(path, b"new")
        except PowerCut:
            seen.add(path.read_bytes())
        else:
            assert path.read_bytes() == b"new"
            break
    assert seen == {b"old", b"new"}


def test_reading_keeps_to_its_bounds(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "fifo")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    for name, limit, message in (
        ("file", 4, r"larger than allowed.*at most 4 bytes, found 5"),
        ("fifo", 9, r"expected a regular file, found a FIFO"),
        (".", 9, r"found a folder"),
        ("none", 9, r"No such file"),
        ("nul\0", 9, r"null byte"),
    ):
        with pytest.raises(StoreError, match=message):
            read_bytes(tmp_path / name, limit)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_reading_keeps_to_its_bounds_if_a_file_holds_more_than_it_tells() -> None:
    with pytest.raises(StoreError, match=r"larger than allowed"):
        read_bytes(Path("/proc/self/status"), 10)  # its size is 0


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)  # 254 bytes; the temporary name is longer than its stem
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"
