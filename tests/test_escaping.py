"""What strangers name their classes has no effect on a terminal, a spreadsheet or LaTeX."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.console import say, table
from secateur.escaping import csv_text, latex_text, printable

HOSTILE = "a\x1b[2J\x07\u202eb\x9b31m\udcff\n\u2028c"


def test_control_characters_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printable(HOSTILE)
    assert shown == r"a\x1b[2J\x07\u202eb\x9b31m\udcff\n\u2028c"
    say(HOSTILE)
    err = capsys.readouterr().err
    assert err == shown + "\n"
    assert printable("Müller 猫 – 1×1") == "Müller 猫 – 1×1"


def test_tables_show_them_too(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=200).print(table(("name", "n"), [(HOSTILE, 1), ("[bold]x[/bold]", 2)]))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"a\x1b[2J" in out
    assert "[bold]x[/bold]" in out


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-cmd|' /C calc'!A0", "@SUM(A1)", "=\t1"])
def test_csv_holds_no_formulas(text: str) -> None:
    assert csv_text(text).startswith("'" + text[0])


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-9", "shoe", "", "T-shirt/top"])
def test_csv_leaves_numbers_and_words(text: str) -> None:
    assert csv_text(text) == text


@given(st.text())
def test_nothing_gets_through(text: str) -> None:
    for shown in (printable(text), csv_text(text), latex_text(text)):
        assert not {c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2028"}
        shown.encode()
    assert not any(c in latex_text(text).replace("\\", "") for c in "~^|<>")
