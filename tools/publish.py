"""Write every generated block of the README, docs/ and results/.

Run: python -m tools publish [--check]

A document holds ``<!-- NAME: python -m tools publish -->`` and ``<!-- end of NAME -->``. The text
between the two is written from code (recipe fields, commands, public names, modules) or from the
records under results/. With ``--check`` nothing is written: documents that are out of date are
listed, and the exit code is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools import blocks, parser

ROOT = Path(__file__).parents[1]


def _recorded(module: str, function: str) -> Callable[[], str]:
    """A block made by a benchmark; imported when it is needed, since some import torch."""

    def make() -> str:
        from importlib import import_module

        return str(getattr(import_module(f"benchmarks.{module}"), function)())

    return make


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"results": _recorded("headline", "headline_block")},
    "results/README.md": {
        "study": _recorded("study", "outcome_block"),
        "runs": _recorded("quickstart", "runs_block"),
        "peers": _recorded("peers.report", "peers_block"),
        "packed": _recorded("artifact_report", "packed_block"),
    },
    "results/compress/README.md": {
        "files": _recorded("quantize_file", "files_block"),
        "networks": _recorded("compress_tables", "networks_block"),
    },
    "docs/recipe.md": {"recipe": blocks.recipe},
    "docs/commands.md": {"commands": blocks.commands},
    "docs/python.md": {"python": blocks.python},
    "docs/modules.md": {"modules": blocks.modules},
}
"""Document to its blocks, and each block to the function that makes it."""


def with_blocks(text: str, made: Mapping[str, str]) -> str:
    """Return a document with its blocks replaced.

    Raises:
        ValueError: A block's marks are missing, or stand there more than once.
    """
    for name, content in made.items():
        begin, end = f"<!-- {name}: python -m tools publish -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"need {begin} and {end} once each")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n\n{content}\n\n{end}{rest.split(end)[1]}"
    return text


def published(document: str) -> tuple[str, str]:
    """A document as it is, and as it should be."""
    before = (ROOT / document).read_text(encoding="utf-8")
    return before, with_blocks(before, {name: make() for name, make in BLOCKS[document].items()})


def main(arguments: list[str]) -> None:
    """Write all documents, or check them."""
    options = parser("publish", __doc__)
    options.add_argument("--check", action="store_true", help="write nothing; list old documents")
    check, stale = options.parse_args(arguments).check, []
    for document in BLOCKS:
        before, after = published(document)
        if before != after:
            stale.append(document)
            if not check:
                (ROOT / document).write_text(after, encoding="utf-8", newline="\n")
    for document in stale:
        print(f"{document}: {'out of date' if check else 'written'}")
    sys.exit(bool(stale) and check)
