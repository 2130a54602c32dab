"""What a cell costs beyond its own work: Ray, the driver, the store, requests to a storage."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common.records import Record
from benchmarks.common.s3_server import s3_server
from secateur.disk import write_json
from secateur.remote import Remote
from secateur.store import Stage, Store


def tasks(work: Path) -> Record:
    """Seconds that the driver and Ray need for a task that does nothing, of 1,000 and 5,000."""
    import ray

    from benchmarks.cluster.grids import cluster

    record: Record = {}
    with cluster(1, work) as made:
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        try:
            nothing = ray.remote(num_cpus=1)(_nothing)
            ray.get([nothing.remote(None) for _ in range(20)])
            for count in (1000, 5000):
                start = time.monotonic()
                left = [nothing.remote("x" * 3000) for _ in range(count)]  # a recipe's size
                submitted = time.monotonic() - start
                while left:
                    _, left = ray.wait(left, num_returns=1, fetch_local=False)
                seconds = time.monotonic() - start
                record[f"{count}"] = {"submit": submitted / count, "all": seconds / count}
            ready = ray.remote(num_cpus=1, max_calls=1)(_import)
            start = time.monotonic()
            ray.get([ready.remote() for _ in range(5)])
            record["ready"] = (time.monotonic() - start) / 5
        finally:
            ray.shutdown()
    return record


def _import() -> None:
    """What a process imports before it can run a cell."""
    import_module("secateur.study.grid")


def _nothing(_: object) -> None:
    return None


def store(work: Path) -> Record:
    """Seconds to find and to make an empty stage in a store of 1,000 to 100,000 stages."""
    root, made, record = work / "stages", 0, Record()
    for count in (1_000, 10_000, 100_000):
        for number in range(made, count):
            (root / f"stage-{number:012x}").mkdir(parents=True, exist_ok=True)
        made, box = count, Store(root, wait=True, any_threads=True)
        make = _median(partial(_stage, box, count), 20)
        record[f"{count}"] = {"make": make, "find": _median(partial(_stage, box, count), 20)}
    return record


def requests(work: Path) -> Record:
    """Requests to an object storage for a stage that is made, and for one that is found."""
    import fsspec

    with s3_server() as (endpoint, served):
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint,
        }  # fmt: skip
        fsspec.filesystem("s3").mkdir("bucket")
        record = {}
        for name in ("made", "found"):
            box = Store(work / name, wait=True, remote=Remote("s3://bucket/x"))
            before = served.requests
            for number in range(5):
                box.stage("data", {"n": number}, {}, _write)
            record[name] = (served.requests - before) / 5
        return record


def _stage(box: Store, count: int, number: int) -> Stage:
    return box.stage("data", {"n": number, "count": count}, {}, _write)


def _write(folder: Path) -> None:
    write_json(folder / "value.json", 1)


def _median(call: Callable[[int], Any], repeats: int) -> float:
    seconds = []
    for number in range(repeats):
        start = time.perf_counter()
        call(number)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
