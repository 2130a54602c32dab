"""Many machines, simulated on one: grids on Ray, lost nodes, failing storage, streamed data.

Run: python -m benchmarks cluster OUT [PART ...] [--work DIR]
Each part appends its record to OUT/measurements.jsonl and is skipped where that has one; a grid
that is interrupted goes on from its finished cells. Without a part all run. OUT/README.md is
written from what is there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.common.records import Record, append, is_there

PACKAGES = ("ray", "s3fs", "moto", "fsspec", "datasets")


def parts() -> dict[str, Callable[[Path], Record]]:
    """Part to the function that measures it; each gets a folder for its files."""
    from benchmarks.cluster import costs, grids, streams

    return {
        "local": grids.local,
        "nodes-1": lambda work: grids.on_nodes(work, 1),
        "nodes-2": lambda work: grids.on_nodes(work, 2),
        "nodes-4": lambda work: grids.on_nodes(work, 4),
        "kills": grids.with_kills,
        "driver": grids.with_dead_driver,
        "storage": grids.on_storage,
        "tasks": costs.tasks,
        "store": costs.store,
        "requests": costs.requests,
        "streams": streams.throughput,
        "imagenet": streams.imagenet,
    }


def main(arguments: list[str]) -> None:
    """Measure the parts named, or all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("part", nargs="*")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "secateur-cluster"
    )
    options = parser.parse_args(arguments)
    from benchmarks.cluster.page import write_page

    measurements, known = options.out / "measurements.jsonl", parts()
    for part in options.part or known:
        if is_there(measurements, {"part": part}):
            print(f"{part}: done")
            continue
        work = options.work / part
        work.mkdir(parents=True, exist_ok=True)
        record = known[part](work)
        print(f"{part}: {record}")
        append(measurements, {"part": part, **record}, PACKAGES)
    write_page(options.out)
