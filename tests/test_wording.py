"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from secateur.wording import counted


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 points"),
        (1, "1 point"),
        (1.0, "1 point"),
        (0.5, "0.5 points"),
        (1e3, "1000 points"),
        (1000, "1,000 points"),
    ],
)
def test_the_noun_is_singular_after_one_only(number: float, words: str) -> None:
    assert counted(number, "point") == words


def test_a_noun_with_another_plural() -> None:
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
