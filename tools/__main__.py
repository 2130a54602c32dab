"""Run one program by name: ``python -m tools NAME ARGUMENTS``."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = ("check_wheel", "excerpt", "publish", "small_resnet", "structure")
"""Modules of this package with ``main(arguments)``."""


def main(arguments: list[str]) -> None:
    """Run the program that the first argument names."""
    if not arguments or arguments[0] not in NAMES:
        for name in NAMES:
            print(f"{name:<14}{(import_module(f'tools.{name}').__doc__ or '').splitlines()[0]}")
        sys.exit(2 if arguments else 0)
    import_module(f"tools.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
