"""Secateur and other tools on the same trained network, data and machine."""

from benchmarks.peers.run import main

__all__ = ["main"]
