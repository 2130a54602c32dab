"""The ``secateur`` command."""

from secateur.cli.app import main

__all__ = ["main"]
