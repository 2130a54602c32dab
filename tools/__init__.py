"""Programs that maintain the repository: ``python -m tools NAME``."""

from __future__ import annotations

import argparse


def parser(name: str, document: str | None) -> argparse.ArgumentParser:
    """The command line of a tool, with its docstring as the help."""
    return argparse.ArgumentParser(
        f"python -m tools {name}",
        description=document,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
