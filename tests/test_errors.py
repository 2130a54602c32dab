"""An error is one line of up to five parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.errors import NetworkError, SecateurError, StoreError


def test_all_parts_stand_in_order() -> None:
    error = SecateurError(
        "no such class", where=Path("a/b"), expected="cat", found="dog", remedy="rename it"
    )
    assert str(error) == "no such class (a/b): expected cat, found dog; rename it"
    assert (error.what, error.where) == ("no such class", Path("a/b"))


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({}, "it broke"),
        ({"where": "a"}, "it broke (a)"),
        ({"found": 0}, "it broke: found 0"),
        ({"remedy": "wait"}, "it broke; wait"),
    ],
)
def test_parts_that_are_not_known_are_omitted(parts: dict, line: str) -> None:
    assert str(SecateurError("it broke", **parts)) == line


def test_the_message_of_another_library_becomes_one_line() -> None:
    assert str(SecateurError("it broke", found="first\n  second\t\n")) == (
        "it broke: found first second"
    )


def test_exit_codes_tell_a_users_mistake_from_a_failure() -> None:
    assert (StoreError("x").exit_code, NetworkError("x").exit_code) == (1, 2)
