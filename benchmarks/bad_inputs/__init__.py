"""Damaged and hostile inputs of commands: exit code, time and memory.

Run: python -m benchmarks bad_inputs results/bad_inputs [--only TEXT] [--resume]
"""

from benchmarks.bad_inputs.run import main

__all__ = ["main"]
