"""Benchmarks: every record and page under ``results/`` comes from one of these modules.

Run: python -m benchmarks NAME ARGUMENTS; without a name, lists them.
"""
