"""Packed files on the command line: folders, JSON, CSV, default names, foreign files, limits."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import secateur
from helpers.artifacts import CLASSES, packed, quantized
from secateur.benchmarking.candidates import FileCandidate
from secateur.cli.describe import describe
from secateur.cli.files import Labels, class_names, pack_into, predictions, unpack_into
from secateur.cli.quantize_command import _array, _options
from secateur.compression.onnx_network import file_of_program
from secateur.errors import ArtifactError, DataError, RecipeError, SecateurError, StoreError
from secateur.models.networks import build_described
from secateur.models.weight_files import read_weights
from secateur.recipe import read_toml
from secateur.records import read_records
from secateur.report.contents import read_report


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "net.sec").write_bytes(packed("micro"))
    return tmp_path / "net.sec"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    (folder / "deep").mkdir(parents=True)
    for name in ("=1.png", "b.JPG", "deep/c.png"):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_is_searched_for_images(file: Path, images: Path) -> None:
    lines = list(predictions(file, [images], 1, 1))
    assert [line.partition(": ")[0] for line in lines] == [
        str(images / name) for name in ("=1.png", "b.JPG", "deep/c.png")
    ]
    with pytest.raises(SecateurError, match="no image files"):
        list(predictions(file, [_empty(images)], 1, 1))


def _empty(images: Path) -> Path:
    folder = images.parent / "empty"
    folder.mkdir()
    return folder


def test_predictions_as_json_and_csv_say_the_same(
    file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    paths = [Path("=1.png"), Path("deep")]
    objects = [json.loads(line) for line in predictions(file, paths, 2, 1, "json")]
    head, *rows = csv.reader(io.StringIO("\n".join(predictions(file, paths, 2, 1, "csv"))))
    assert head == ["image", "rank", "class", "probability"]
    assert [row[0] for row in rows] == ["'=1.png"] * 2 + ["deep/c.png"] * 2  # no formula
    flat = [c for found in objects for c in found["classes"]]
    assert [(row[2], float(row[3])) for row in rows] == [
        (c["name"], pytest.approx(c["probability"])) for c in flat
    ]
    assert {c["name"] for c in flat} <= set(CLASSES)


def test_unpack_has_a_default_name_and_replaces_nothing_by_it(file: Path) -> None:
    (line,) = unpack_into(file)
    assert line.startswith(str(file.with_suffix(".onnx")))
    assert file.with_suffix(".onnx").read_bytes() == quantized("micro")
    with pytest.raises(SecateurError, match="the file is there already"):
        list(unpack_into(file))
    with pytest.raises(ArtifactError, match=r"larger than allowed.*--limit"):
        list(unpack_into(file, file.with_name("other.onnx"), limit=len(packed("micro"))))
    with pytest.raises(StoreError, match="the input itself"):
        list(unpack_into(file, file))
    assert file.read_bytes() == packed("micro")


def bare(path: Path) -> Path:
    """A file of somebody who says nothing of classes and preparation."""
    model = onnx.load_from_string(quantized("micro"))
    del model.metadata_props[:]
    onnx.save(model, path)
    return path


def test_a_foreign_file_is_packed_with_its_class_names(tmp_path: Path, images: Path) -> None:
    source, names = bare(tmp_path / "net.onnx"), tmp_path / "names.txt"
    names.write_text("\n".join(f"kind {i}" for i in range(10)))
    list(pack_into(source, tmp_path / "mute.sec"))
    with pytest.raises(ArtifactError, match="does not say how to prepare images"):
        secateur.load(tmp_path / "mute.sec")
    labels = Labels(names, "0.5,0.5,0.5", "0.25,0.25,0.25")
    list(pack_into(source, tmp_path / "net.sec", labels=labels))
    network = secateur.load(tmp_path / "net.sec", threads=1)
    assert network.classes == tuple(f"kind {i}" for i in range(10))
    (tmp_path / "own.sec").write_bytes(packed("micro"))
    own = secateur.load(tmp_path / "own.sec", threads=1)
    assert network([images / "b.JPG"]) == pytest.approx(own([images / "b.JPG"]), abs=1e-6)


@pytest.mark.parametrize(
    ("names", "mean", "message"),
    [
        (9, "0.5,0.5,0.5", "class names that do not fit.*expected 10 lines, found 9"),
        (10, "0.5", "expected 3 numbers each"),
        (10, "0.5,half,0.5", "--mean: expected numbers"),
        (10, "0.5,nan,0.5", "preparation that does not fit"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(
    tmp_path: Path, names: int, mean: str, message: str
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(names))))
    labels = Labels(tmp_path / "names.txt", mean, "0.25,0.25,0.25")
    with pytest.raises(SecateurError, match=message):
        list(pack_into(bare(tmp_path / "net.onnx"), tmp_path / "net.sec", labels=labels))
    assert not (tmp_path / "net.sec").exists()


def test_external_data_is_packed(tmp_path: Path) -> None:
    model = onnx.load_from_string(quantized("micro"))
    onnx.save_model(
        model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    (line,) = pack_into(tmp_path / "net.onnx", tmp_path / "net.sec")
    assert "times smaller" in line
    (tmp_path / "own.sec").write_bytes(packed("micro"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
    scores = [secateur.load(tmp_path / name, threads=1)(pixels) for name in ("net.sec", "own.sec")]
    assert np.array_equal(*scores)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ArtifactError, match=r"external data.*w\.bin"):
        list(pack_into(tmp_path / "net.onnx", tmp_path / "again.sec"))


def test_show_is_one_line_for_a_mutant(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    for data in (quantized("micro")[:-5], b"\x00" * 40, b"hello"):
        path.write_bytes(data)
        with pytest.raises(SecateurError, match=r"ONNX"):
            list(describe(path))
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(SecateurError):
        list(describe(path))


READERS = {
    "explain.sec": secateur.explain,
    "bench.sec": lambda path: FileCandidate(path, "onnxruntime", 1).open(),
    "weights.pt": read_weights,
    "weights.safetensors": read_weights,
    "records.jsonl": read_records,
    "report.json": read_report,
    "recipe.toml": read_toml,
    "names.txt": class_names,
    "images.npy": _array,
    "built.pt2": lambda path: build_described(str(path), 10, 1),
    "converted.pt2": lambda path: file_of_program(path, path.with_suffix(".onnx")),
}


@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_fifo_or_follows_a_device(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(SecateurError, match="a FIFO"):
        READERS[name](path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(SecateurError, match="a device"):
        READERS[name](path)


def test_an_array_that_promises_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert _array(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(2, 3)", b"(9999999999, 3)", 1))
    with pytest.raises(DataError, match="cannot read images"):
        _array(path)
    np.save(path, np.array([{"code": 1}], object))
    with pytest.raises(DataError, match="cannot read images"):
        _array(path)


def test_settings_of_quantize_are_toml_or_words() -> None:
    assert _options(["quantize.bits=4", "method = auto"]) == {"bits": 4, "method": "auto"}
    for override in ("bits", "=4", f"images={'9' * 5000}"):
        with pytest.raises(RecipeError, match="cannot read --set"):
            _options([override])


def test_exit_code_of_a_given_file_is_2(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        class_names(tmp_path / "none.txt")
    assert caught.value.exit_code == 2
    with pytest.raises(StoreError) as caught:
        list(unpack_into(tmp_path / "net.sec", tmp_path / "none" / "net.onnx"))
    assert caught.value.exit_code == 2
