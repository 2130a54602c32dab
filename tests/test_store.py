from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from secateur.disk import TEMPORARY
from secateur.errors import StoreError
from secateur.store import Store, save_tensors, write_text


def _write(text: str) -> object:
    return lambda folder: write_text(folder / "out.txt", text)


def folders(root: Path) -> list[str]:
    """Names of all that is in a store, without the locks, which stay."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.stage("train", {"epochs": 1}, {}, _write("a"))  # type: ignore[arg-type]
    assert first.fresh
    assert store.made_any
    store = Store(tmp_path)
    second = store.stage("train", {"epochs": 1}, {}, _write("b"))  # type: ignore[arg-type]
    assert not second.fresh
    assert not store.made_any
    assert (second.folder / "out.txt").read_text() == "a"
    assert folders(tmp_path) == [first.folder.name]


def test_a_store_that_only_finds_makes_nothing(tmp_path: Path) -> None:
    made = Store(tmp_path).stage("train", {"epochs": 1}, {}, _write("a"))  # type: ignore[arg-type]
    store = Store(tmp_path, find_only=True)
    found = store.stage("train", {"epochs": 1}, {}, _write("b"))  # type: ignore[arg-type]
    assert found.folder == made.folder
    with pytest.raises(StoreError, match="no such stage"):
        store.stage("train", {"epochs": 2}, {}, _write("b"))  # type: ignore[arg-type]
    assert folders(tmp_path) == [made.folder.name]


def test_the_id_is_the_hash_of_what_is_said_and_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = store.stage("data", {}, {}, _write("a"))  # type: ignore[arg-type]
    other = store.stage("data", {"seed": 1}, {}, _write("a"))  # type: ignore[arg-type]
    ids = {
        store.stage("train", says, {"data": up}, _write("x")).id  # type: ignore[arg-type]
        for says in ({"epochs": 1}, {"epochs": 2})
        for up in (data, other)
    }
    assert len(ids) == 4


def test_what_a_killed_stage_left_is_offered_but_never_trusted(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def killed(folder: Path) -> None:
        write_text(folder / "checkpoint", "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage("train", {}, {}, killed)
    assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [".partial"]

    def resumed(folder: Path) -> None:
        assert (folder / "checkpoint").read_text() == "half"
        (folder / "checkpoint").unlink()
        write_text(folder / "out.txt", "whole")

    stage = store.stage("train", {}, {}, resumed)
    assert stage.fresh
    assert set(stage.manifest["files"]) == {"out.txt"}


def test_a_damaged_stage_is_refused_by_name(tmp_path: Path) -> None:
    stage = Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]
    (stage.folder / "out.txt").write_text("b")
    with pytest.raises(StoreError, match=r"damaged.*out\.txt.*delete"):
        Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]
    (stage.folder / "stage.json").write_text("{")
    with pytest.raises(StoreError, match=r"damaged.*stage\.json"):
        Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]


def test_a_cut_manifest_is_reported_and_the_stage_not_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = store.stage("data", {}, {}, _write("a"))  # type: ignore[arg-type]
    train = store.stage("train", {}, {"data": data}, _write("b"))  # type: ignore[arg-type]
    manifest = train.folder / "stage.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"damaged.*stage\.json.*delete"):
        Store(tmp_path).stage("train", {}, {"data": data}, _write("b"))  # type: ignore[arg-type]


def _hold(path: str, held: object, release: object) -> None:
    with FileLock(path):
        held.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_a_store_may_wait_for_another_process(tmp_path: Path) -> None:
    """Cells that run side by side share stages: the second finds what the first made."""
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    folder = Store(tmp_path).stage("train", {}, {}, _write("a")).folder  # type: ignore[arg-type]
    os.rename(folder, tmp_path / "elsewhere")
    other = context.Process(
        target=_hold_then_put, args=(tmp_path / "elsewhere", folder, held, release)
    )
    other.start()
    assert held.wait(60)
    threading.Timer(0.3, release.set).start()
    stage = Store(tmp_path, wait=True).stage("train", {}, {}, _write("b"))  # type: ignore[arg-type]
    other.join()
    assert not stage.fresh
    assert (stage.folder / "out.txt").read_text() == "a"


def _hold_then_put(made: Path, folder: Path, held: Any, release: Any) -> None:
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        held.set()
        release.wait(60)
        made.rename(folder)


def test_two_processes_do_not_make_the_same_stage(tmp_path: Path) -> None:
    stage = Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]
    os.rename(stage.folder, tmp_path / "elsewhere")
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    lock = str(stage.folder.with_name(f".{stage.folder.name}.lock"))
    other = context.Process(target=_hold, args=(lock, held, release))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(StoreError, match="another process"):
            Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]
    finally:
        release.set()
        other.join()


def test_unwritable_output_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to output folder.*--out"):
        Store(tmp_path / "file" / "runs")


def test_a_full_disk_leaves_no_tensors_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("secateur.store.save_file", full)
    with pytest.raises(StoreError, match="No space left"):
        save_tensors(tmp_path / "weights.safetensors", {"a": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_stage_of_other_threads_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chain(store: Store, text: str) -> list[str]:
        data = store.stage("data", {}, {}, _write(text))  # type: ignore[arg-type]
        train = store.stage("train", {}, {"data": data}, _write(text))  # type: ignore[arg-type]
        return [(stage.folder / "out.txt").read_text() for stage in (data, train)]

    for threads, text in ((1, "one"), (2, "two"), (1, "again"), (2, "again")):
        monkeypatch.setattr("secateur.environment.threads", lambda threads=threads: threads)
        assert chain(Store(tmp_path), text) == ["one", "one" if threads == 1 else "two"]
    assert "stored with 1 threads, this process has 2: not reused" in capsys.readouterr().err
    monkeypatch.setattr("secateur.environment.threads", lambda: 8)
    for store in (Store(tmp_path, find_only=True), Store(tmp_path, any_threads=True)):
        assert chain(store, "never") == ["one", "one"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest["says"].update(epochs=2),
        lambda manifest: manifest.update(id="0123456789ab"),
        lambda manifest: manifest.update(stage="prune-1"),
        lambda manifest: manifest.update(seconds=99.0),
        lambda manifest: manifest["upstream"].update(data="0123456789ab"),
        lambda manifest: manifest["files"].pop("out.txt"),
        lambda manifest: manifest["files"].update({"../elsewhere": "00"}),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path: Path, edit: Any) -> None:
    stage = Store(tmp_path).stage("train", {"epochs": 1}, {}, _write("a"))  # type: ignore[arg-type]
    manifest = stage.manifest
    edit(manifest)
    (stage.folder / "stage.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"damaged.*delete"):
        Store(tmp_path).stage("train", {"epochs": 1}, {}, _write("a"))  # type: ignore[arg-type]


def test_a_manifest_without_a_checksum_is_read(tmp_path: Path) -> None:
    """As version 0.1.0 wrote them."""
    stage = Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]
    manifest = stage.manifest
    del manifest["checksum"]
    (stage.folder / "stage.json").write_text(json.dumps(manifest))
    assert not Store(tmp_path).stage("train", {}, {}, _write("b")).fresh  # type: ignore[arg-type]


def test_a_file_that_no_manifest_lists_is_refused(tmp_path: Path) -> None:
    stage = Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]
    (stage.folder / "plan.json").write_text("{}")
    with pytest.raises(StoreError, match=r"damaged.*plan\.json"):
        Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]


def test_a_lock_is_never_unlinked(tmp_path: Path) -> None:
    """Else a process that waits holds the old file, and a third one makes and locks a new one."""
    stage = Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]
    lock = stage.folder.with_name(f".{stage.folder.name}.lock")
    before = lock.stat().st_ino
    (stage.folder / "stage.json").unlink()
    assert Store(tmp_path).stage("train", {}, {}, _write("a")).fresh  # type: ignore[arg-type]
    assert lock.stat().st_ino == before


def test_unfinished_files_of_a_killed_attempt_do_not_become_results(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        (folder / f".out.txt.0123{TEMPORARY}").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).stage("train", {}, {}, killed)
    stage = Store(tmp_path).stage("train", {}, {}, _write("a"))  # type: ignore[arg-type]
    assert set(stage.manifest["files"]) == {"out.txt"}
