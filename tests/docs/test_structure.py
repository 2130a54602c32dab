"""The program that measures the structure of a checkout."""

from __future__ import annotations

from pathlib import Path

from tools.structure import lines_by_package, longest_function, steps


def test_steps_join_calls_of_one_module_and_mark_returns() -> None:
    walk = ["importance", "importance", "plan", "importance", "surgery", "plan"]
    assert list(steps(walk)) == [
        ("importance", False), ("plan", False), ("importance", True), ("surgery", False),
        ("plan", True),
    ]  # fmt: skip


def test_lines_are_counted_by_package(tmp_path: Path) -> None:
    package = tmp_path / "src" / "secateur"
    (package / "pruning" / "tracing").mkdir(parents=True)
    (package / "errors.py").write_text("A = 1\nB = 2\n", encoding="utf-8")
    (package / "pruning" / "tracing" / "trace.py").write_text(
        "def f():\n    pass\n", encoding="utf-8"
    )
    assert lines_by_package(tmp_path) == {".": 2, "pruning": 2}
    assert longest_function(tmp_path) == 2
