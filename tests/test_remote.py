"""Folders in an object storage: whole or absent, made once, whatever fails."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from benchmarks.common.s3_server import s3_server
from helpers.object_storage import FLAKY, FlakyStorage
from secateur.cli import app as cli
from secateur.disk import write_json
from secateur.errors import StoreError, UsageError
from secateur.remote import Remote
from secateur.store import Store

URL = f"{FLAKY}://bucket/prefix"


@pytest.fixture(autouse=True)
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FlakyStorage]]:
    monkeypatch.setattr("secateur.remote.PAUSE", 0.001)
    FlakyStorage.clear()
    yield FlakyStorage
    FlakyStorage.clear()


def a_folder(path: Path, text: str = "one") -> Path:
    (path / "figures").mkdir(parents=True)
    (path / "records.txt").write_text(text)
    (path / "figures" / "a.svg").write_text("figure")
    (path / ".hidden").write_text("stays")
    return path


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_a_folder_is_fetched_as_it_was_published(
    tmp_path: Path, storage: type[FlakyStorage], share: float
) -> None:
    storage.clear(share)
    remote, other = Remote(URL), Remote(URL)
    for number in range(10):
        name = f"cells/a-{number}"
        assert not other.has(name)
        assert not other.fetch(name, tmp_path / "nothing")
        assert remote.publish(name, a_folder(tmp_path / str(number), str(number)))
        assert other.has(name)
        copy = tmp_path / "copy"
        assert other.fetch(name, copy)
        assert {p.name for p in copy.rglob("*")} == {"records.txt", "figures", "a.svg"}
        assert (copy / "records.txt").read_text() == str(number)
    assert other.versions("cells") == [f"cells/a-{number}" for number in range(10)]
    assert not list(tmp_path.glob("*.tmp"))
    assert bool(storage.failures) == bool(share)


def test_the_first_of_two_writers_counts(tmp_path: Path) -> None:
    remote = Remote(URL)
    assert remote.publish("a", a_folder(tmp_path / "one", "one"))
    assert remote.publish("a", tmp_path / "one")  # the same again is no other
    assert not remote.publish("a", a_folder(tmp_path / "two", "two"))
    remote.fetch("a", tmp_path / "two")
    assert (tmp_path / "two" / "records.txt").read_text() == "one"


def test_a_folder_is_absent_until_its_list_is_there(
    tmp_path: Path, storage: type[FlakyStorage], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(URL)
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "_create", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            remote.publish("a", a_folder(tmp_path / "one"))
    assert storage.store
    assert not remote.has("a")
    assert not remote.fetch("a", tmp_path / "copy")


def test_a_damaged_file_is_refused_and_names_stay_inside(
    tmp_path: Path, storage: type[FlakyStorage]
) -> None:
    remote = Remote(URL)
    remote.publish("a", a_folder(tmp_path / "one"))
    path = next(p for p in storage.store if "/files/" in p)
    storage.store[path].seek(0)
    storage.store[path].write(b"x")
    with pytest.raises(StoreError, match="stored file is damaged"):
        remote.fetch("a", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    remote._files.pipe_file(remote._list_of("b"), b'{"../out": "00"}')
    with pytest.raises(StoreError, match="leaves its folder"):
        remote.fetch("b", tmp_path / "copy")


def test_one_holds_the_lock_and_the_next_waits(storage: type[FlakyStorage]) -> None:
    storage.clear(0.05)
    order = []

    def work(name: str) -> None:
        with Remote(URL, lease=2).lock("a"):
            order.append(name)
            time.sleep(0.05)
            order.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == 8
    assert order[::2] == order[1::2]  # nobody came in between
    assert not [path for path in storage.store if "/locks/" in path]


def test_the_lock_of_a_dead_process_ends_and_that_of_a_live_one_does_not() -> None:
    dead = Remote(URL, lease=0.2)
    dead._create(dead._path("locks", "a", "4"), b"killed")
    start = time.monotonic()
    with dead.lock("a"):
        assert time.monotonic() - start >= 0.2
        with pytest.raises(StoreError, match="another process is making"):
            dead.lock("a", wait=False).__enter__()
    with dead.lock("a", wait=False):
        pass


def _make(text: str, made: list[str]) -> object:
    def make(folder: Path) -> None:
        made.append(text)
        write_json(folder / "value.json", text)

    return make


def test_stages_are_made_on_one_machine_and_found_on_all(
    tmp_path: Path, storage: type[FlakyStorage]
) -> None:
    storage.clear(0.05)
    made: list[str] = []

    def machine(name: str) -> dict[str, str]:
        store = Store(tmp_path / name, wait=True, remote=Remote(URL, lease=1))
        data = store.stage("data", {}, {}, _make(f"data by {name}", made))
        train = store.stage("train", {"epochs": 1}, {"data": data}, _make(f"by {name}", made))
        return {stage.name: stage.json("value.json") for stage in (data, train)}

    results: dict[str, dict[str, str]] = {}
    threads = [
        threading.Thread(target=lambda n=name: results.__setitem__(n, machine(n)))
        for name in ("a", "b", "c")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert results["a"] == results["b"] == results["c"]
    assert machine("late") == results["a"]
    assert len(made) == 2


def test_a_stage_that_two_machines_made_is_the_first_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (Store(tmp_path / n, remote=Remote(URL, lease=0.2)) for n in ("here", "there"))

    def slow(folder: Path) -> None:  # a machine that was taken for dead
        there.stage("data", {}, {}, _make("there", []))  # type: ignore[arg-type]
        write_json(folder / "value.json", "here")

    monkeypatch.setattr(Remote, "_live", lambda *_: None)
    assert here.stage("data", {}, {}, slow).json("value.json") == "there"
    assert not list((tmp_path / "here").glob("*.partial"))


def test_a_stage_that_was_made_before_is_uploaded(tmp_path: Path) -> None:
    Store(tmp_path / "a").stage("data", {}, {}, _make("a", []))  # type: ignore[arg-type]
    made: list[str] = []
    for name in ("a", "b"):
        store = Store(tmp_path / name, remote=Remote(URL))
        assert store.stage("data", {}, {}, _make(name, made)).json("value.json") == "a"  # type: ignore[arg-type]
    assert not made


def test_storage_that_cannot_be_used_is_one_line(
    storage: type[FlakyStorage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for url, message in (
        ("runs", "not an object storage"),
        ("file:///tmp/x", "not an object storage"),
        ("nowhere://x", "unknown kind of storage"),
        ("zip://x", "storage without conditional writes"),
    ):
        with pytest.raises(UsageError, match=message):
            Remote(url)
    monkeypatch.setattr("fsspec.get_filesystem_class", _not_installed)
    with pytest.raises(UsageError, match=r"pip install 'secateur\[s3\]'"):
        Remote("s3://bucket")
    monkeypatch.undo()
    monkeypatch.setattr("secateur.remote.PAUSE", 0.001)
    storage.clear(broken=PermissionError)
    with pytest.raises(StoreError, match="permission refused: says the storage"):
        Remote(URL).check()
    command = ["run", "quickstart", "--store", URL, "--out", str(tmp_path)]
    result = CliRunner().invoke(cli.app, command)
    assert "permission refused" in str(result.exception)
    assert not (tmp_path / "stages").exists()  # before work starts
    storage.clear(broken=ConnectionError)
    with pytest.raises(StoreError, match="8 failures: says the storage"):
        Remote(URL).check()
    storage.clear()
    monkeypatch.setattr(
        FlakyStorage, "pipe_file", lambda self, path, value, mode="": _overwrite(self, path, value)
    )
    with pytest.raises(StoreError, match="expected conditional writes"):
        Remote(URL).check()


def _not_installed(scheme: str) -> None:
    raise ImportError("Install s3fs to access S3")


def _overwrite(files: FlakyStorage, path: str, value: bytes) -> None:
    files._request("pipe_file", path, value)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto is not installed")
def test_on_an_s3_server_that_fails_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_server(0.05) as (endpoint, served):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        fsspec.filesystem("s3").mkdir("bucket")
        remote = Remote("s3://bucket/prefix", lease=2)
        remote.check()
        for number in range(8):
            folder = a_folder(tmp_path / str(number), str(number))
            with remote.lock(f"a/{number}"):
                assert remote.publish(f"a/{number}", folder)
            assert not remote.publish(f"a/{number}", a_folder(tmp_path / f"not {number}", "x"))
            assert remote.fetch(f"a/{number}", tmp_path / "copy")
            assert (tmp_path / "copy" / "records.txt").read_text() == str(number)
        assert served.failures > 2
        with pytest.raises(StoreError, match="storage cannot be used"):
            Remote("s3://another-bucket/x").check()
