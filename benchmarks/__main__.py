"""Run one benchmark by name: ``python -m benchmarks NAME ARGUMENTS``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

NAMES = (
    "alexnet_engines",
    "artifact",
    "bad_inputs",
    "cluster",
    "compress_networks",
    "criteria",
    "depth",
    "differences",
    "int8",
    "int8_recovery",
    "ladder",
    "networks",
    "pack_time",
    "peers",
    "plan_time",
    "pruning_grid",
    "quantize_file",
    "quickstart",
    "same_bytes",
    "scan_speed",
    "study",
    "training_speed",
    "width_latency",
)
"""Modules of this package with ``main(arguments)``."""


def summary(name: str) -> str:
    """First line of a benchmark's docstring."""
    return (import_module(f"benchmarks.{name}").__doc__ or "").splitlines()[0]


def main(arguments: list[str]) -> None:
    """Run the benchmark that the first argument names."""
    if not arguments or arguments[0] not in NAMES:
        for name in NAMES:
            print(f"{name:<19}{summary(name)}")
        sys.exit(2 if arguments else 0)
    name, *rest = arguments
    sys.argv[0] = f"{Path(sys.executable).name} -m benchmarks {name}"
    module = import_module(f"benchmarks.{name}")
    if {"-h", "--help"} & set(rest) and "argparse" not in vars(module):
        print(module.__doc__)
        return
    module.main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
