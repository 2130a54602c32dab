"""Imports go down only: the layers of docs/architecture.md, held against the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur

PACKAGE = Path(secateur.__file__).parent
LAYERS = [
    {"errors", "__init__"},
    {"recipe", "console", "environment"},
    {"store", "data", "networks", "records", "statistics", "onnx_graph"},
    {"runtimes", "routes", "cost", "kernels", "evaluate"},
    {"widths"},
    {"benchmark", "quantization", "export", "layer_latency"},
    {"network_latency"},
    {"train", "pruning"},
    {"scanning", "measure"},
    {"sensitivity", "artifact"},
    {"pipeline", "report", "contenders"},
    {"collect", "reproduction"},
    {"overfit", "demonstration"},
    {"run", "show", "explain", "bench"},
    {"ship", "grid"},
    {"forecast"},
    {"reproduce"},
    {"cli"},
    {"__main__"},
]
PRUNING = [
    *(
        {"wiring"},
        {"labels"},
        {"rules"},
        {"moves", "computations", "layers"},
        {"trace"},
        {"channels"},
        {"plan"},
    ),
    *({"importance", "allocation", "schedule", "geometry"}, {"masks"}, {"surgery", "reinit"}),
    *({"arrange"}, {"find"}, {"latency"}, {"removal", "dead"}, {"rounds"}),
]
QUANTIZATION = [
    {"affine"},
    {"histogram", "weights"},
    {"placement"},
    {"scheme", "calibrate"},
    {"qdq", "simulate"},
    {"hessian", "curvature", "judge"},
    {"rate"},
    {"equalize", "rounding", "aware", "bits", "parity"},
    {"pricing"},
    {"quantize"},
]
ARTIFACT = [
    {"container", "splice", "stream", "bounds"},
    {"integers"},
    {"tensors"},
    {"packing"},
    {"classifier"},
    {"verify"},
]
REPRODUCTION = [
    {"published", "cells", "formats"},
    {"measured", "curves", "contribution"},
    {"plans"},
    {"tables"},
    {"figures", "outcome"},
    {"page"},
]
DATA = [{"images"}, {"choose", "sources"}]
EXPLAIN = [{"operators", "nodes"}, {"islands", "widths"}, {"explanation"}, {"render"}]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("secateur"):
            *_, first = node.module.split(".", 1)
            if node.module == "secateur":
                for alias in node.names:
                    yield alias.name if alias.name in LEVEL else "__init__"
            else:
                yield first.split(".")[0]


def test_every_module_has_a_layer() -> None:
    assert {_top(path) for path in PACKAGE.rglob("*.py")} == set(LEVEL)


def test_imports_go_down_only() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "__init__.py"  # the public face names what it imports when asked
        for target in _imports(path)
        if target != _top(path) and LEVEL[target] >= LEVEL[_top(path)]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "layers"),
    [
        ("pruning", PRUNING),
        ("quantization", QUANTIZATION),
        ("artifact", ARTIFACT),
        ("reproduction", REPRODUCTION),
        ("data", DATA),
        ("explain", EXPLAIN),
    ],
)
def test_packages_are_in_layers_too(package: str, layers: list[set[str]]) -> None:
    level = {name: height for height, names in enumerate(layers) for name in names}
    files = {path.stem: path for path in (PACKAGE / package).glob("*.py")}
    del files["__init__"]
    assert set(files) == set(level)
    wrong = []
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
            other = module.removeprefix(f"secateur.{package}.")
            if other in level and level[other] >= level[name]:
                wrong.append(f"{name} imports {other}")
    assert wrong == []
