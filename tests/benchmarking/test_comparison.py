"""``secateur bench``: files of one form take turns, and what was found is kept and shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from helpers import tiny_networks
from secateur.artifact.packing import pack
from secateur.benchmarking.candidates import (
    ClassifierShape,
    EagerCandidate,
    FileCandidate,
    list_candidates,
    shape_of,
)
from secateur.benchmarking.comparison import CandidateResult, Comparison, benchmark, save
from secateur.benchmarking.timing import Start
from secateur.cli.bench_table import render
from secateur.errors import SecateurError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A network as ONNX and packed."""
    path, packed = tmp_path / "net.onnx", tmp_path / "net.sec"
    tiny_networks.exported("shufflenet", path)
    packed.write_bytes(pack(path.read_bytes(), {}))
    return path, packed


def shown(found: Comparison) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in render(found):
        console.print(part, soft_wrap=True)
    return console.file.getvalue()  # type: ignore[attr-defined]


def made_up(*medians: float, restless: bool = False) -> Comparison:
    turns = np.linspace(0.7, 1.3, 40) if restless else np.linspace(0.99, 1.01, 40)
    rows = [
        CandidateResult(f"net{i}", 1000, {1: m * turns, 8: 4 * m * turns}, Start(10, 2, 5_000_000))
        for i, m in enumerate(medians)
    ]
    return Comparison(rows, 2, {"processor": "A CPU", "versions": {}, "commit": "0"})


def test_a_packed_file_competes_with_what_it_decodes_to(files: tuple[Path, Path]) -> None:
    found = benchmark(list(files), [], threads=1, batches=(1, 4), repeats=8, warmup=1)
    assert [row.title for row in found.rows] == [str(path) for path in files]
    assert [row.size_bytes for row in found.rows] == [path.stat().st_size for path in files]
    assert [{b: len(s) for b, s in row.samples.items()} for row in found.rows] == [{1: 8, 4: 2}] * 2
    assert all(row.start.open_ms > 0 and row.start.first_ms > 0 for row in found.rows)


def test_raw_samples_are_kept(tmp_path: Path) -> None:
    found = made_up(2.0, 1.0)
    save(found, tmp_path / "deep" / "bench.json")
    kept = json.loads((tmp_path / "deep" / "bench.json").read_text())
    assert kept["rows"][1]["samples"]["8"] == pytest.approx(found.rows[1].samples[8], abs=1e-5)
    assert kept["processor"] == "A CPU"


def test_ratios_are_to_the_first_and_throughput_is_of_the_batch() -> None:
    text = shown(made_up(2.0, 0.5))
    assert "4.00\N{MULTIPLICATION SIGN} [4.00, 4.00]" in text
    assert "4,000" in text  # 8 images in 4 x 0.5 ms
    assert "NOISY" not in text


def test_a_noisy_machine_is_said_to_be_noisy() -> None:
    assert "NOISY MACHINE: p10 to p90 spans 48 %" in shown(made_up(2.0, 1.0, restless=True))


def test_names_say_what_to_compare_with(files: tuple[Path, Path]) -> None:
    path, packed = files
    found = list_candidates([path], ["alexnet", "openvino", str(packed)], 3)
    assert found == [
        EagerCandidate("alexnet", ClassifierShape(3, 28, 10), 3),
        FileCandidate(packed, "onnxruntime", 3),
        FileCandidate(path, "onnxruntime", 3),
        FileCandidate(path, "openvino", 3),
    ]


def test_an_eager_network_runs_in_the_shape_of_the_file(files: tuple[Path, Path]) -> None:
    shape = shape_of(files[1])
    rival = EagerCandidate("shufflenet_v2_x1_0", shape, 1)
    images = np.zeros((2, shape.channels, shape.side, shape.side), np.float32)
    assert rival.open().run(images).shape == (2, shape.classes)
    assert rival.size_bytes > 4 * 1_250_000


def test_unknown_baselines_and_other_shapes_are_refused(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(SecateurError, match=r"unknown baseline.*mobilenet_v2.*or give a file"):
        list_candidates([files[0]], ["resnet"], 1)
    other = tmp_path / "other.onnx"
    tiny_networks.exported("alexnet", other)
    with pytest.raises(SecateurError, match=r"shapes differ.*other\.onnx"):
        list_candidates([files[0], other], [], 1)
