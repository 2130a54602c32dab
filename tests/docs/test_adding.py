"""Each "adding a ..." page of the documentation is run: what it shows, works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import tiny_networks
from secateur.pruning import importance
from secateur.pruning.tracing import rules
from secateur.runtimes import RUNTIMES

PAGES = Path(__file__).parents[2] / "docs" / "adding"


@pytest.fixture
def restored_tables() -> Iterator[None]:
    """Leave the tables that a page adds to as they were."""
    tables = (RUNTIMES, importance.CRITERIA, rules._RULES)
    saved = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, saved, strict=True):
        table.clear()
        table.update(entries)


def code_of(page: Path) -> str:
    """The Python blocks of a page, one after another."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
@pytest.mark.usefixtures("restored_tables")
def test_the_example_of_a_page_works(page: Path, tmp_path: Path) -> None:
    def export_tiny_network() -> Path:
        path = tmp_path / "net.onnx"
        tiny_networks.exported("shufflenet", path)
        return path

    code = code_of(page)
    assert "assert" in code
    program = compile(code, str(page), "exec", dont_inherit=True)
    exec(program, {"__name__": page.stem, "export_tiny_network": export_tiny_network})


def test_there_is_a_page_for_each_kind_of_addition() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == {
        "criterion",
        "data-set",
        "operator-rule",
        "recipe-field",
        "runtime",
    }
