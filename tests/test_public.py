"""The public names: listed once, typed, lazily imported, each with an example that runs."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import secateur
from secateur.errors import SecateurError
from secateur.runtimes import OnnxRuntime

SOURCE = Path(secateur.__file__)


def test_lists_agree() -> None:
    """``__all__``, the table of modules and the imports for type checkers name the same."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == secateur._HOMES
    assert sorted(imported) == sorted(secateur.__all__)
    assert set(secateur.__all__) <= set(dir(secateur))


def test_no_public_name_is_a_package() -> None:
    """Importing a package would replace the function of its name."""
    packages = {path.parent.name for path in SOURCE.parent.glob("*/__init__.py")}
    modules = {path.stem for path in SOURCE.parent.glob("*.py")}
    assert not set(secateur.__all__) & (packages | modules)


def test_the_package_is_typed() -> None:
    assert (SOURCE.parent / "py.typed").exists()


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, secateur; dir(secateur); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prunne'"):
        secateur.prunne  # noqa: B018


@pytest.mark.parametrize("name", [n for n in secateur.__all__ if n != "SecateurError"])
def test_the_example_of_a_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"secateur": secateur, "torch": torch, "nn": nn, "Path": Path}
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(getattr(secateur, name), f"secateur.{name}", globs=names)
    runs = [part for part in example.examples if doctest.SKIP not in part.options]
    assert runs, "no example that runs"
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert results.failed == 0


def test_external_data_is_packed(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    model = onnx.load(secateur.export(network, tmp_path / "own.onnx", (1, 8, 8)))
    onnx.save_model(
        model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    packed = secateur.pack(tmp_path / "net.onnx", tmp_path / "net.sec")
    (tmp_path / "w.bin").unlink()
    image = np.ones((1, 1, 8, 8), np.float32)
    first, second = (
        OnnxRuntime(path, threads=1).run(image)
        for path in (tmp_path / "own.onnx", secateur.unpack(packed, tmp_path / "again.onnx"))
    )
    assert np.array_equal(first, second)
    with pytest.raises(SecateurError, match=r"external data.*w\.bin"):
        secateur.pack(tmp_path / "net.onnx", tmp_path / "lost.sec")


def test_input_and_output_are_different_files(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    path = secateur.export(network, tmp_path / "net.onnx", (1, 8, 8))
    before = path.read_bytes()
    with pytest.raises(SecateurError):
        secateur.pack(path, path)
    assert path.read_bytes() == before
