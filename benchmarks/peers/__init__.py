"""Secateur beside its peers, on the same trained network: ``python benchmarks/peers --help``."""
