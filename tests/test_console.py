from __future__ import annotations

import pytest

import secateur.console as console


def test_lines_tell_the_time_left_from_what_was_done_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress("train", total=100, done=60) as tick:
        now = 5
        tick.advance(5)  # too soon for a line
        now = 20
        tick.advance(5, "loss 1.0")
        now = 21
        tick.advance(30)  # the end is always told
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "train  70/100  20 s, 60 s left  loss 1.0",
        "train  100/100  21 s, 0 s left  loss 1.0",
    ]
