"""Bad recipes, damaged stages and checkpoints, and invalid output paths."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from benchmarks.bad_inputs.case import ACCEPTED, EITHER, Case, Content
from benchmarks.bad_inputs.images import NETWORK, TINY, TRAIN, folder_files
from helpers.artifacts import packed, quantized

RECIPES, STORED, OUTPUTS = "Recipes", "Stages, checkpoints, records", "Outputs"


def recipes() -> Iterator[Case]:
    """Recipes given to ``show`` and ``train``."""
    for name, content, message in (
        ("an infinite number", TINY.replace("0.05", "inf"), "learning_rate"),
        ("not a number", TINY.replace("0.05", "nan"), "learning_rate"),
        ("an integer of 5,000 digits", TINY + f"seed = {'9' * 5000}", "not a TOML file"),
        ("lists 5,000 levels deep", f"description = {'[' * 5000}{']' * 5000}", "not a TOML file"),
        ("a key of 3,000 parts", f"{'.'.join('a' * 3000)} = 1", "too deeply nested"),
        ("a name of 300 characters", TINY.replace("tiny", "n" * 300), "at most 100 characters"),
        ("a name that is a path", TINY.replace("tiny", "../../x"), "name"),
        ("a name with control characters", TINY.replace("tiny", r"\u001b[31m"), "name"),
        ("bytes that are not UTF-8", b"name = '\xff'", "cannot read recipe"),
        ("a NUL", "name = 'x'\0", "not a TOML file"),
        ("2 MiB", "#" * 2**21, "larger"),
        ("a FIFO", os.mkfifo, "FIFO|nothing to show"),
        ("a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"), "device|nothing to"),
        (
            "an unknown key",
            TINY + "x = 1",
            "unknown recipe key",
        ),
    ):
        for command in (("show", "tiny.toml"), ("groups", "tiny.toml")):
            if command[0] == "show" or callable(content):
                yield Case(RECIPES, name, command, {"tiny.toml": content}, message)
    odd = ("show", os.fsdecode(b"\xff\x1b[31m"))
    yield Case(
        RECIPES, "an argument with control characters, not UTF-8", odd, {}, "nothing to show"
    )
    sets = (*TRAIN, "--set", "train.batch_size=1")
    name = "batches of one image under batch-norm"
    yield Case(RECIPES, name, sets, folder_files(), "", EITHER)
    sets = (*TRAIN, "--set", f"seed={'9' * 5000}")
    yield Case(RECIPES, "--set with 5,000 digits", sets, folder_files(), "seed")
    sets = (*TRAIN, "--set", "train.learning_rate=1e30", "--set", "train.epochs=3")
    yield Case(RECIPES, "a training that diverges", sets, folder_files(), "diverge|finite", code=1)


# ---- stored results


@cache
def _trained() -> Path:
    """Train the tiny recipe and return the folder."""
    folder = Path(tempfile.mkdtemp())
    _make(folder)
    _train(folder).wait()
    return folder


@cache
def _interrupted() -> Path:
    """Kill a training after its second checkpoint and return the folder."""
    folder = Path(tempfile.mkdtemp())
    _make(folder)
    (folder / "tiny.toml").write_text(TINY.replace("epochs = 1, batch", "epochs = 20, batch"))
    process = _train(folder)
    while process.poll() is None and len(list(folder.rglob("checkpoint*.safetensors"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return folder


def _make(folder: Path) -> None:
    for name, content in folder_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not callable(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _train(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "secateur", *TRAIN]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, **quiet)  # noqa: S603


def _copied(source: Callable[[], Path], pattern: str, damage: Callable[[bytes], bytes]) -> Content:
    """Copy a folder and damage one file in it."""

    def make(path: Path) -> None:
        shutil.copytree(source(), path.parent, dirs_exist_ok=True)
        file = min(path.parent.glob(pattern))
        file.write_bytes(damage(file.read_bytes()))

    return make


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _edited(data: bytes) -> bytes:
    manifest = json.loads(data)
    manifest["says"]["train"] = {"epochs": 99}
    return json.dumps(manifest).encode()


def stored() -> Iterator[Case]:
    """Damaged results of earlier runs, read when the same command runs again."""
    weights, manifest = "runs/stages/train-*/*.safetensors", "runs/stages/train-*/stage.json"
    for name, pattern, damage in (
        ("weights: one bit flipped", weights, _flip),
        ("weights: cut", weights, _cut),
        ("manifest: settings edited", manifest, _edited),
        ("manifest: cut", manifest, _cut),
    ):
        files = {".made": _copied(_trained, pattern, damage)}
        yield Case(STORED, name, TRAIN, files, "stored stage is damaged", code=1)
    newest = "runs/stages/*.partial/checkpoint.safetensors"
    for name, damage in (("one bit flipped", _flip), ("cut", _cut), ("empty", lambda data: b"")):
        files = {".made": _copied(_interrupted, newest, damage)}
        name, message = f"checkpoint: {name}", "checkpoint refused"
        yield Case(STORED, name, TRAIN, files, message, ACCEPTED)
    records = {".made": _copied(_trained, "runs/tiny-*/records.jsonl", _cut)}
    command = ("-c", _REPORT)
    yield Case(STORED, "records: cut", command, records, "records", code=1)


_REPORT = """
import glob, sys
from secateur.cli import main
sys.argv = ["secateur", "report", *glob.glob("runs/tiny-*")]
main()
"""


# ---- outputs


def outputs() -> Iterator[Case]:
    """Output paths that ``unpack``, ``pack``, ``bench`` and ``demo`` must not write."""

    def link(path: Path) -> None:
        path.symlink_to("dear.txt")

    inputs: dict[str, Content] = {"net.sec": packed("micro"), "net.onnx": quantized("micro")}
    dear: dict[str, Content] = {"dear.txt": "dear"}
    for command in (
        ("unpack", "net.sec", "-o"),
        ("pack", "net.onnx", "-o"),
        ("bench", "net.sec", "--out"),
    ):
        for name, target, files, message, unchanged in (
            ("a link", "out", dear | {"out": link}, "a symbolic link", "dear.txt"),
            ("a FIFO", "out", {"out": os.mkfifo}, "a FIFO", None),
            ("a folder", "out", {"out": Path.mkdir}, "a folder", None),
            ("a device", "/dev/full", {}, "a device", None),
            ("the input itself", command[1], {}, "the input itself", command[1]),
            ("in a folder that is missing", "none/out", {}, "no such folder", None),
        ):
            case = Case(OUTPUTS, f"{name}", (*command, target), inputs | files, message)
            yield Case(**{**case.__dict__, "unchanged": unchanged})
    names = {"names.txt": b"caf\xe9\n" * 10} | inputs
    command = ("quantize", "net.onnx", "--data", "x.npy", "--classes", "names.txt")
    yield Case(OUTPUTS, "class names that are not UTF-8", command, names, "", code=2)
    export = {"net.sec": NETWORK, "dear.txt": "dear", "site/index.html": _link_above}
    command = ("demo", "net.sec", "--export", "site")
    name = "a link in place of a file of the page"
    yield Case(OUTPUTS, name, command, export, "", unchanged="dear.txt")


def _link_above(path: Path) -> None:
    path.symlink_to("../dear.txt")
