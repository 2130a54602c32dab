"""results/cluster/README.md from the measurements beside it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.cluster.simulation import STAGES, Costs, simulate
from benchmarks.common.markdown import table
from benchmarks.common.records import Record, read
from secateur.report.numbers import duration, fixed, percent, significant

GRIDS = {
    "local": "one process at a time, no Ray",
    "nodes-1": "Ray, 1 node",
    "nodes-2": "Ray, 2 nodes",
    "nodes-4": "Ray, 4 nodes",
    "kills": "Ray, 2 nodes, of which one is killed at random and replaced, ten times",
    "driver": "Ray, 2 nodes; `secateur grid` killed (SIGKILL) and started again",
    "storage": "Ray, 2 nodes, S3 server that fails 5 % of its requests, no shared folder",
}
CELLS, NODES = 10_000, 100
ROUND_TRIP = 0.03
"""Seconds of a request to an object storage in the same region; an assumption."""
NETWORK_FACTOR = 10
"""How much slower a shared folder answers than the disk that was measured; an assumption."""

HEAD = """# Many machines, simulated on one

    python -m benchmarks cluster results/cluster [PART ...]

Written from [measurements.jsonl](measurements.jsonl), one record a part.
[How it works](../../docs/many-machines.md).
"""


def write_page(out: Path) -> None:
    """Write the page from what is measured; parts that are not are named."""
    records = {record["part"]: record for record in read(out / "measurements.jsonl")}
    lines = [HEAD]
    for section in (_grids, _costs, _simulation, _streams):
        lines += [*section(records), ""]
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _grids(records: dict[str, Record]) -> Iterator[str]:
    yield "## A grid of 24 cells\n"
    first = next((records[part] for part in GRIDS if part in records), None)
    if first is None:
        yield "Not measured."
        return
    yield (
        "ShuffleNetV2 on 80 images of 16x16: 3 trainings, 6 prunings and 24 quantizations, shared "
        "among the cells. A node is a raylet with one core and a cache folder of its own. All ran "
        "on **one** core of one machine, so that more nodes cannot be faster here: the table shows "
        "what is right, not what is fast. Records are compared without times, with the first row.\n"
    )
    rows = []
    for part, what in GRIDS.items():
        record = records.get(part)
        if record is None:
            rows.append([what, "not measured", "", "", ""])
            continue
        same = sum(record["digests"].get(k) == v for k, v in first["digests"].items())
        rows.append(
            [what, duration(record["seconds"]), f"{same} of {record['cells']}",
             str(len(record["errors"])), _event(part, record)]
        )  # fmt: skip
    yield from table(["", "Took", "Same records", "Errors", "Beside"], rows)
    yield ""
    yield _made_with(first)


def _event(part: str, record: Record) -> str:
    if part == "kills":
        return f"{len(record['killed'])} nodes killed"
    if part == "driver":
        return f"killed with {record['killed'][0]} cells done; {len(record['repeated'])} repeated"
    if part == "storage":
        return f"{record['failures']:,} of {record['requests']:,} requests failed"
    return f"{record['stages']} stages made"


def _made_with(record: Record) -> str:
    names = ("python", "torch", "ray", "s3fs", "moto")
    versions = ", ".join(f"{n} {record['versions'][n]}" for n in names if n in record["versions"])
    return f"{record['processor']}, shared with other work; {versions}; commit {record['commit']}."


def _costs(records: dict[str, Record]) -> Iterator[str]:
    yield "## What a cell costs beside its work\n"
    rows = []
    if {"local", "nodes-1"} <= records.keys():
        local, ray = records["local"], records["nodes-1"]
        steps = [np.diff([0.0, *record["ends"]]) for record in (local, ray)]
        each = [float(np.median(step)) for step in steps]
        rows.append(["Median seconds between ends of cells, without Ray", significant(each[0])])
        rows.append(["The same on Ray, 1 node", significant(each[1])])
    if "tasks" in records:
        of = records["tasks"]
        rows += [
            [f"Ray and driver, an empty task of {int(n):,}, ms", significant(1000 * of[n]["all"])]
            for n in ("1000", "5000")
        ]
        rows.append(
            [
                "Ray, until a process can run a cell, s",
                significant(of["ready"]),
            ]
        )
    store = records.get("store") or {}
    for size in (name for name in store if name.isdigit()):
        for what, does in (("find", "find a stage"), ("make", "make an empty stage")):
            ms = significant(1000 * store[size][what])
            rows.append([f"Store of {int(size):,} stages, {does}, ms", ms])
    if "requests" in records:
        of = records["requests"]
        rows.append(["Requests to an object storage, a stage is made", f"{of['made']:g}"])
        rows.append(["a stage is fetched", f"{of['found']:g}"])
    yield from table(["", ""], rows)
    if "tasks" in records:
        yield ""
        yield _made_with(records["tasks"])


def _simulation(records: dict[str, Record]) -> Iterator[str]:
    yield f"## {CELLS:,} cells on {NODES} nodes, simulated\n"
    if not {"tasks", "store", "requests"} <= records.keys():
        yield "Not measured."
        return
    driver = records["tasks"]["5000"]["all"] * CELLS / 5000  # ray.wait looks at all that are left
    sizes = [int(count) for count in records["store"] if count.isdigit()]
    seconds = [records["store"][str(size)]["make"] for size in sizes]
    slope, base = np.polyfit(sizes, seconds, 1)
    made = records["requests"]["made"]
    starts = records["tasks"]["ready"]
    stores = {
        "local disk": lambda n: base + slope * n,
        f"shared folder, {NETWORK_FACTOR} times slower": lambda n: (
            NETWORK_FACTOR * (base + slope * n)
        ),
        f"object storage, {1000 * ROUND_TRIP:g} ms a request": lambda n: made * ROUND_TRIP,
    }
    yield (
        f"By `benchmarks/cluster/simulation.py`, event by event: {significant(starts)} s until a "
        f"cell's process is ready, {significant(1000 * driver)} ms of the driver "
        "for each cell, ten stages a cell, of which eight cells share the first five. Neighbors in "
        "the list share them, or cells that are far apart. Shares are of all nodes' time.\n"
    )
    rows = []
    for work, apart, (name, make) in product((10, 60, 600), (False, True), stores.items()):
        result = simulate(CELLS, NODES, work, Costs(starts, driver, make), 8, apart)
        takes = (duration(3600 * result[key]) for key in ("hours", "ideal"))
        shares = (percent(result[key]) for key in ("start", "store", "waiting", "driver"))
        rows.append([f"{work} s", "apart" if apart else "neighbors", name, *takes, *shares])
    head = [
        "Work of a cell", "Sharing", "Store", "Takes", "Work alone", "Start", "Store", "Lock",
        "Driver",
    ]  # fmt: skip
    yield from table(head, rows)
    yield ""
    listing = 1000 * slope * CELLS * STAGES
    yield (
        f"The driver ends at most {significant(1 / driver)} cells a second: a limit for cells of "
        f"less than {significant(NODES * driver)} s. Of making a stage in a store of "
        f"{CELLS * STAGES:,}, the listing is {significant(listing)} ms on the local disk: it looks "
        "for the stage made with other numbers of threads. Cells that share a training and start "
        "together wait for its lock with their nodes reserved, so that values that change the "
        "training belong last in the file."
    )


def _streams(records: dict[str, Record]) -> Iterator[str]:
    yield "## Data larger than memory\n"
    if "streams" in records:
        record = records["streams"]
        yield (
            f"{record['images']:,} JPEGs of 400x300 ({record['bytes_each'] / 1e3:.0f} kB each) in "
            f"WebDataset shards, read at random on {record['threads']} thread; files were in the "
            "system's cache. The fastest of five passes over 1,000 images.\n"
        )
        rows = [
            ["read alone", significant(record["read"])],
            ["read and decoded by Pillow", significant(record["decoded"])],
            ["streamed, resized to 232, cut to 224", significant(record["streamed_232"])],
            ["streamed, resized to 36, cut to 32", significant(record["streamed_36"])],
        ]
        yield from table(["", "Images a second"], rows)
        yield ""
    if "imagenet" in records:
        record = records["imagenet"]
        accuracy = ", ".join(f"{k} {fixed(v)} %" for k, v in record["top1_percent"].items())
        yield (
            "`secateur run mobilenet_v2-imagenet-paper --devices 2` at a tiny size (32x32, one "
            "epoch of 1,500 of the images, two processes that train together), the whole chain in "
            f"{duration(record['seconds'])} on one core: {accuracy} of 500 test images of 100 "
            "classes. One epoch teaches nothing; the run shows that it goes through.\n"
        )
        yield _made_with(record)
