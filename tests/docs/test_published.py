"""Generated blocks of the README, docs/ and results/ are what code and records say."""

from __future__ import annotations

import pytest

from tools.publish import BLOCKS, published, with_blocks


@pytest.mark.parametrize("document", BLOCKS)
def test_a_document_is_up_to_date(document: str) -> None:
    before, after = published(document)
    assert before == after, "run python -m tools publish"


def test_a_block_is_replaced_and_nothing_else() -> None:
    text = "a\n<!-- x: python -m tools publish -->\n\nold\n\n<!-- end of x -->\nb\n"
    made = with_blocks(text, {"x": "new"})
    assert made == text.replace("old", "new")
    assert with_blocks(made, {"x": "new"}) == made


def test_missing_marks_are_refused() -> None:
    with pytest.raises(ValueError, match="end of x"):
        with_blocks("nothing", {"x": "new"})
