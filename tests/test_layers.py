"""Imports go down only: the code agrees with the layers that docs/architecture.md lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur

PACKAGE = Path(secateur.__file__).parent
DOCUMENT = Path(__file__).parents[1] / "docs" / "architecture.md"


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
