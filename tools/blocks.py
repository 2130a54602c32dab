"""Blocks of the documentation that are made from the code itself."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import secateur
from secateur.cli.app import app
from secateur.recipe.reference_table import recipe_markdown

PACKAGE = Path(secateur.__file__).parent


def recipe() -> str:
    """Every recipe field."""
    return recipe_markdown()


def commands() -> str:
    """Every command with its summary and cost, by panel."""
    panels: dict[str, list[str]] = {}
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        paragraphs = [
            " ".join(part.split()) for part in inspect.cleandoc(command.help).split("\n\n")
        ]
        cost = next((p.removeprefix("Cost: ") for p in paragraphs if p.startswith("Cost: ")), "")
        panel = command.rich_help_panel or "Other"
        panels.setdefault(panel, []).append(f"| `{name}` | {paragraphs[0]} | {cost} |")
    parts = []
    for panel, rows in panels.items():
        head = "| Command | What it does | What it costs |\n| --- | --- | --- |"
        parts.append(f"## {panel}\n\n{head}\n" + "\n".join(rows))
    return "\n\n".join(parts)


def python() -> str:
    """Every public name, for mkdocstrings."""
    return "\n\n".join(f"::: {home}.{name}" for name, home in secateur._HOMES.items())


def modules() -> str:
    """Every package and module with the first sentence of its docstring."""
    return "\n".join(_tree(PACKAGE, 0))


def _tree(folder: Path, depth: int) -> Iterator[str]:
    for path in sorted(folder.glob("*.py"), key=lambda path: path.stem):
        if path.stem != "__init__":
            yield f"{'  ' * depth}- `{path.stem}`: {_summary(path)}"
    for inner in sorted(folder.iterdir()):
        if (inner / "__init__.py").exists():
            yield f"{'  ' * depth}- **{inner.name}/**: {_summary(inner / '__init__.py')}"
            yield from _tree(inner, depth + 1)


def _summary(path: Path) -> str:
    """First sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`")
