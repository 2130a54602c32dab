"""Every benchmark says how it is run."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import main


@pytest.mark.parametrize("name", ["study", "networks"])
def test_help_is_the_docstring(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([name, "--help"])
    assert f"python -m benchmarks {name}" in capsys.readouterr().out


def test_an_unknown_benchmark_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["unknown"])
    assert "compress_networks" in capsys.readouterr().out
