"""The tools of the repository tell how they are run, and refuse what they do not know."""

from __future__ import annotations

import pytest

from tools.__main__ import NAMES, main


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_prints_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"python -m tools {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_refuses_an_unknown_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([name, "somewhere", "--nonsense"])
    assert "--nonsense" in capsys.readouterr().err
