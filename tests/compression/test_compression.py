"""A whole compression: the network in the package, few images, few candidates."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import secateur
from helpers.browser import needs_browser, open_page
from secateur.artifact.packing import unpack
from secateur.benchmarking.cost import parameters
from secateur.compression.api import Result, run
from secateur.compression.inputs import Inputs, read_problem
from secateur.compression.problem import Problem
from secateur.compression.settings import Settings
from secateur.demo.npm import RUNTIME, fetch_package
from secateur.demo.server import served

pytestmark = pytest.mark.slow

SETTINGS = Settings.model_validate(
    {
        "goal": {"max_drop": 5.0},
        "tune": {"epochs": 1, "batch_size": 50},
        "bench": {"repeats": 3, "warmup": 1, "threads": 1},
        "quantize": {"images": 64, "scan_images": 100},
        "tries": 2,
    }
)


@pytest.fixture(scope="module")
def problem() -> Problem:
    problem = read_problem(Inputs(), torch.device("cpu"))
    training, validation = problem.training.spread(600), problem.validation.spread(400)
    test = problem.test().spread(400)
    return replace(
        problem, read=lambda: (training, validation), test=lambda: test,
        counts={"training": [60] * 10, "validation": [40] * 10}, test_images=len(test),
    )  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compressed")


@pytest.fixture(scope="module")
def result(problem: Problem, out: Path) -> Result:
    return run(problem, SETTINGS, Inputs(), out)


def rows(result: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(result.curve.read_text().splitlines()))


def test_meets_and_is_smaller(result: Result) -> None:
    assert result.verdict.kind == "meets"
    assert result.verdict.n == 400
    assert "times smaller" in result.summary
    tried = [row["candidate"].split(",")[0] for row in rows(result)]
    assert tried[:4] == ["float", "int8", "macs 0.50", "macs 0.71"]
    assert "price" in tried[4]


def test_packed_file_holds_the_onnx_file_and_the_verdict(result: Result) -> None:
    unpacked = unpack(result.packed.read_bytes())
    assert unpacked.onnx == result.onnx.read_bytes()
    assert unpacked.about["accuracy"]["verdict"] == "meets"


def test_ships_the_cheapest_acceptable_candidate(result: Result) -> None:
    (shipped,) = [row for row in rows(result) if row["shipped"] == "yes"]
    assert int(shipped["onnx_bytes"]) == result.onnx.stat().st_size
    finished = [row for row in rows(result) if not row["given_up"]]
    assert float(shipped["latency_ms"]) <= max(float(row["latency_ms"]) for row in finished)


def test_model_is_the_float_network_of_the_file(result: Result, problem: Problem) -> None:
    images = problem.prepare(problem.validation.pixels[:100])
    with torch.inference_mode():
        expected = result.model(images).argmax(1).numpy()
    session = onnxruntime.InferenceSession(result.onnx)
    decided = session.run(None, {"image": images.contiguous().numpy()})[0].argmax(1)
    assert (decided == expected).mean() > 0.75  # coarse rounding changes some; chance is 0.1
    (shipped,) = [row for row in rows(result) if row["shipped"] == "yes"]
    assert parameters(result.model) == int(shipped["parameters"])


def test_report_names_every_candidate(result: Result, out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"]["status"] == "met"
    assert [one["name"] for one in report["candidates"]] == [
        row["candidate"] for row in rows(result) if not row["given_up"]
    ]
    page = result.report.read_text().replace("\u00a0", " ")  # a number stays with its unit
    assert str(result.verdict) in page


def test_second_run_makes_nothing_new(result: Result, problem: Problem, out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*.onnx")}
    again = run(problem, SETTINGS, Inputs(), out)
    assert {p: p.stat().st_mtime_ns for p in (out / "stages").rglob("*.onnx")} == before
    assert again.verdict == result.verdict


def test_recipe_repeats_the_run(result: Result, out: Path) -> None:
    from secateur.compression.command import Arguments, resolve

    inputs, settings = resolve(Arguments(network=str(out / "recipe.toml")))
    assert (inputs, settings) == (Inputs(), SETTINGS)
    assert tomllib.loads((out / "recipe.toml").read_text())["goal"]["max_drop"] == 5.0


def test_run_python_decides_as_secateur(result: Result, out: Path, problem: Problem) -> None:
    path = out / "image.png"
    Image.fromarray(problem.validation.pixels[7, 0].numpy()).save(path)
    command = [sys.executable, out / "run_python.py", path]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ((name, chance), *_) = secateur.load(result.packed).predict([path])[0]
    assert line.startswith(f"{path}: {name} {100 * chance:.1f} %")


def test_readme_snippets_run(result: Result, out: Path) -> None:
    readme = (out / "README.md").read_text()
    assert str(result.verdict) in readme
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(out / "image.png")
    snippets = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    assert len(snippets) == 2
    for code in snippets:
        command = [sys.executable, "-W", "ignore", "-c", code]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=out)
        assert printed.stdout.strip()


@needs_browser
def test_javascript_snippet_runs(result: Result, out: Path) -> None:
    package = out / "node_modules" / RUNTIME.name / "dist"
    package.mkdir(parents=True)
    try:
        files = fetch_package(RUNTIME)
    except secateur.SecateurError as error:
        pytest.skip(str(error))
    for file in files:
        shutil.copy(file, package)
    code = (out / "README.md").read_text().split("```html\n")[1].split("```")[0]
    (out / "page.html").write_text(f"<!doctype html><body>{code}</body>")
    (out / "favicon.ico").touch()  # browsers ask for it
    with served(out) as address:
        page = open_page(f"{address}page.html")
        page.wait_for_function("document.body.innerText.trim().length > 0")
        shown, problems = page.inner_text("body"), page.problems
    assert not problems
    session = onnxruntime.InferenceSession(result.onnx)
    expected = session.run(None, {"image": np.zeros((1, 1, 28, 28), np.float32)})[0][0]
    assert np.allclose([float(score) for score in shown.split()], expected, atol=1e-3)


def test_file_says_how_to_prepare(result: Result) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(result.onnx).metadata_props}
    assert metadata["resolution"] == "28"
    assert json.loads(metadata["classes"])[0] == "T-shirt/top"
