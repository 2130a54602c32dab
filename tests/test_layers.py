"""The layers of docs/architecture.md are those of the code; modules and functions are short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur

PACKAGE = Path(secateur.__file__).parent
ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"


def documented_layers() -> dict[str, list[set[str]]]:
    """Package path (``.`` for the root) to its layers, lowest first."""
    blocks = re.findall(r"```layers (\S+)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    return {name: [set(line.split()) for line in body.splitlines()] for name, body in blocks}


LAYERS = documented_layers()


def packages() -> list[str]:
    """Paths of all packages below the root, and of the root itself."""
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    return sorted(folders)


def members(folder: Path) -> dict[str, list[Path]]:
    """Modules and packages directly inside a package, with their files."""
    files = {path.stem: [path] for path in folder.glob("*.py") if path.stem != "__init__"}
    inner = {path.parent for path in folder.glob("*/*.py")}
    return files | {path.name: sorted(path.rglob("*.py")) for path in inner}


def imported(path: Path) -> Iterator[str]:
    """Dotted names below ``secateur`` that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secateur"):
            for alias in node.names:
                yield f"{node.module}.{alias.name}".partition(".")[2]


def test_every_package_is_documented() -> None:
    assert set(LAYERS) == set(packages())


@pytest.mark.parametrize("package", packages())
def test_imports_go_down_only(package: str) -> None:
    level = {name: height for height, names in enumerate(LAYERS[package]) for name in names}
    inside = members(PACKAGE / package)
    assert set(inside) == set(level)
    prefix = "" if package == "." else package.replace("/", ".") + "."
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for name, files in inside.items()
        for path in files
        for target in imported(path)
        if target.startswith(prefix)
        and (other := target.removeprefix(prefix).partition(".")[0]) in level
        and other != name
        and level[other] >= level[name]
    ]
    assert wrong == []


def test_module_names_are_unique() -> None:
    names = [path.name for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    assert sorted(names) == sorted(set(names))


MODULE_LINES = 400
"""Lines of a module of the package."""


def test_modules_are_short() -> None:
    length = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name: count for name, count in length.items() if count > MODULE_LINES} == {}


MOST_LINES = 60
"""Lines of a function with its signature and docstring, so that it fits on a screen."""

DOCUMENTED_OPTIONS = {"compression/api.compress", "pruning/removal.plan_removal",
                      "quantization/quantize.quantize"}  # fmt: skip
"""Public functions with many options, each documented; the limit applies to their statements."""


def functions(folder: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function below a folder, by module and name."""
    for path in folder.rglob("*.py"):
        module = path.relative_to(folder).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", node


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef, statements_only: bool) -> int:
    """Lines of a function; with ``statements_only`` without signature and docstring."""
    first = node.lineno
    if statements_only:
        documented = ast.get_docstring(node) is not None
        first = node.body[1 if documented else 0].lineno
    return (node.end_lineno or first) - first + 1


@pytest.mark.parametrize("folder", [PACKAGE, ROOT / "benchmarks", ROOT / "tools"])
def test_functions_fit_on_a_screen(folder: Path) -> None:
    long = {
        name: count
        for name, node in functions(folder)
        if (count := lines(node, statements_only=name in DOCUMENTED_OPTIONS)) > MOST_LINES
    }
    assert long == {}


def test_the_exceptions_are_long() -> None:
    length = {name: lines(node, statements_only=False) for name, node in functions(PACKAGE)}
    assert {name for name in DOCUMENTED_OPTIONS if length[name] <= MOST_LINES} == set()
