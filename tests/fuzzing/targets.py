"""What is fuzzed: readers of files from strangers. Each returns, or raises a SecateurError.

A target takes the bytes of one file. Anything else that it raises, a crash, or more time or memory
than :mod:`fuzzing.__main__` allows is a finding.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from secateur.artifact.bounds import check_network
from secateur.artifact.container import read_sections
from secateur.artifact.packing import TAGS, read_about, unpack
from secateur.artifact.splice import find_tensors
from secateur.data import load_folder
from secateur.data.official import check_files
from secateur.errors import DataError, SecateurError
from secateur.escaping import csv_text, latex_text, printable
from secateur.imaging import Preparation, read_image
from secateur.onnx_ir.reader import parse
from secateur.recipe import parse_recipe
from secateur.records import read_records

LIMIT = 2**22
"""Bytes of the largest ONNX file, and pixels of the largest image."""


def container(data: bytes) -> None:
    """A packed file: sections, table, tensors, hash, and the network's bounds."""
    read_about(read_sections(data, TAGS))
    check_network(unpack(data, LIMIT).onnx, LIMIT)


def onnx_file(data: bytes) -> None:
    """An ONNX file, as a protobuf, as tensors to cut out, and as a network to run."""
    for read in (lambda: find_tensors(data), lambda: parse(data, "fuzz")):
        with contextlib.suppress(SecateurError):
            read()
    check_network(data, LIMIT)


def recipe(data: bytes) -> None:
    """A recipe in TOML."""
    parsed = parse_recipe(data.decode(errors="replace"), "fuzz")
    assert parse_recipe(parsed.to_toml(), "again").id == parsed.id


def image(data: bytes) -> None:
    """An image file, for a gray and for a color network."""
    for channels in (1, 3):
        read = read_image(io.BytesIO(data), channels, limit=LIMIT)
        assert read.mode == ("L" if channels == 1 else "RGB")


def records(data: bytes) -> None:
    """A file of records, and what prints their text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_bytes(data)
        read_records(path)


def text(data: bytes) -> None:
    """A name from a stranger's file, on its way to a terminal, a spreadsheet and LaTeX."""
    name = data.decode(errors="surrogateescape")
    shown = printable(name)
    assert shown.isprintable() or not shown.isascii()
    assert "\x1b" not in shown
    assert "\n" not in shown + csv_text(name) + latex_text(name)
    json.dumps(shown).encode()


def data_file(data: bytes) -> None:
    """A file in place of an official one, gzipped or not: only the official content is accepted."""
    with tempfile.TemporaryDirectory() as folder:
        for name, file in (
            ("fashionmnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"),
            ("cifar10", "cifar-10-batches-py/test_batch"),
        ):
            path = Path(folder) / file
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
            with contextlib.suppress(DataError):
                check_files(name, Path(folder))
                raise AssertionError("a file that is not the official one was accepted")


def data_folder(data: bytes) -> None:
    """A folder of images. Each line is an entry: a letter for its kind, then its path."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        for line in data.split(b"\n")[:64]:
            parts = [part for part in line[1:].split(b"/") if part not in (b"", b".", b"..")]
            if parts and b"\0" not in line:
                with contextlib.suppress(OSError):  # too long, or there already
                    _make_entry(root / os.fsdecode(b"/".join(parts)), line[:1])
        data_set = load_folder(root, _PREPARATION)
        for images in (data_set.training, data_set.validation, data_set.test):
            assert len(images) == len(images.pixels) > 0
            assert 0 <= images.labels.min() <= images.labels.max() < len(data_set.classes)
        json.dumps(data_set.report, ensure_ascii=False).encode()


def _make_entry(path: Path, kind: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == b"d":
        path.mkdir()
    elif kind == b"f":
        os.mkfifo(path)
    elif kind == b"l":
        path.symlink_to(path.parent)
    else:
        path.write_bytes(_IMAGE if kind == b"i" else b"no image")


_PREPARATION = Preparation((0.5,), (0.5,), 4)
_IMAGE = b"P5 2 2 255 \x00\x40\x80\xff"  # PGM

TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        container,
        onnx_file,
        recipe,
        image,
        records,
        text,
        data_file,
        data_folder,
    )
}
