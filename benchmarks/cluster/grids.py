"""One grid of 24 small cells: here, on simulated nodes, with lost nodes, without its driver."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from PIL import Image

from benchmarks.common.records import Record
from benchmarks.common.s3_server import s3_server
from secateur.data import load
from secateur.records import read_records
from secateur.study.engines import Engine, LocalEngine, Work
from secateur.study.grid import Cell
from secateur.study.grid_file import read_grid

GRID = """
recipes = ["quickstart"]

[values]
seed = [0, 1, 2]
prune.fraction = [0.3, 0.5]
quantize.images = [8, 16, 24, 32]

[set]
data = { name = "folder", channels = 1, validation = 0.25 }
network.resolution = 16
train = { epochs = 1, batch_size = 16, learning_rate = 0.05 }
scan = { fractions = [0.3], layer_fractions = [0.5], images = 8, tolerance = 99 }
prune.rounds = 1
prune.epochs = 1
bench = { threads = 1, warmup = 1, repeats = 3 }
"""
"""3 trainings, 6 prunings and 24 quantizations, so that cells wait for each other's stages."""

TRAINING, TEST = 8, 4
"""Images of each class, from the excerpt in the package: a cell takes seconds."""

KILLS = 10
SHARE = 0.05
"""Part of the storage's answers that are failures."""
TIMES = ("seconds", "epoch_seconds", "latency_ms", "unpack_seconds")


def images(work: Path) -> Path:
    """Some images of the excerpt as a folder of files."""
    folder = work.parent / "excerpt"
    for part, count in (("train", TRAINING), ("test", TEST)):
        excerpt = load("fashionmnist-mini", None, train=part == "train")
        for label in range(len(excerpt.classes)):
            (folder / part / str(label)).mkdir(parents=True, exist_ok=True)
            for index in torch.nonzero(excerpt.labels == label)[:count, 0].tolist():
                path = folder / part / str(label) / f"{index}.png"
                if not path.exists():
                    Image.fromarray(excerpt.pixels[index : index + 1][0, 0].numpy()).save(path)
    return folder


def cells(work: Path) -> list[Cell]:
    """The cells, in the order in which they are started."""
    path = work / "grid.toml"
    path.write_text(GRID, encoding="utf-8")
    return read_grid(path)


def digests(todo: list[Cell], out: Path) -> dict[str, str]:
    """Finished cell to a hash of its records without times; the packed file names times too."""
    result = {}
    for cell in todo:
        if cell.is_done(out):
            records = read_records(cell.folder(out) / "records.jsonl")
            kept = [
                record.model_copy(update={"commit": ""}).to_json()
                for record in records
                if record.metric not in TIMES and record.at.get("stage") != "pack"
            ]
            result[cell.name] = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]
    return result


def measured(engine: Engine, work: Path, storage: str | None = None) -> Record:
    """Run the whole grid on an engine from nothing."""
    todo, out, errors = cells(work), work / "out", list[str]()
    shutil.rmtree(out, ignore_errors=True)
    start = time.monotonic()
    ends = list[float]()

    def finished(cell: Cell, error: str | None) -> None:
        ends.append(round(time.monotonic() - start, 2))
        if error:
            errors.append(f"{cell.name}: {error}")
        print(f"{len(ends)}/{len(todo)} {cell.name}: {error or 'done'}", flush=True)

    engine.run(todo, Work(out, images(work), storage), finished)
    return {
        "cells": len(todo), "seconds": round(time.monotonic() - start, 2), "ends": ends,
        "errors": errors, "digests": digests(todo, out), "stages": _stages(out),
    }  # fmt: skip


def _stages(out: Path) -> int:
    return len(list((out / "stages").glob("*/stage.json")))


def local(work: Path) -> Record:
    """One process at a time on this machine, without Ray."""
    return measured(LocalEngine(["cpu"]), work)


@contextmanager
def cluster(nodes: int, work: Path) -> Iterator[Any]:
    """A head without cores, and nodes of one core and one folder for copies each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for number in range(nodes):
            add_node(made, work, number)
        yield made
    finally:
        made.shutdown()


def add_node(made: Any, work: Path, number: int) -> Any:
    """Add a node that shares nothing with the others but what is at --out."""
    cache = work / f"node-{number}"
    cache.mkdir(parents=True, exist_ok=True)
    return made.add_node(num_cpus=1, env_vars={"XDG_CACHE_HOME": str(cache)})


def on_nodes(work: Path, nodes: int) -> Record:
    """The grid on so many nodes that share a folder."""
    from secateur.study.ray_engine import RayEngine

    with cluster(nodes, work) as made:
        return measured(RayEngine(made.address), work) | {"nodes": nodes}


def with_kills(work: Path) -> Record:
    """The grid on two nodes, of which one is killed at random, and replaced, ten times."""
    from secateur.study.ray_engine import RayEngine

    shutil.rmtree(work / "out", ignore_errors=True)
    draw, over, killed = random.Random(0), Event(), list[float]()  # noqa: S311
    with cluster(2, work) as made:
        start = time.monotonic()

        def kill() -> None:
            while not list((work / "out").glob("cells/*/log.txt")) and not over.wait(1):
                pass  # the first cell has not started
            for number in range(KILLS):
                if over.wait(draw.uniform(5, 15)):
                    return
                node = draw.choice(sorted(made.worker_nodes, key=lambda n: n.unique_id))
                made.remove_node(node, allow_graceful=False)
                killed.append(round(time.monotonic() - start, 1))
                print(f"killed node {number + 1}", flush=True)
                add_node(made, work, 2 + number)

        thread = Thread(target=kill)
        thread.start()
        try:
            record = measured(RayEngine(made.address), work)
        finally:
            over.set()
            thread.join()
    return record | {"nodes": 2, "killed": killed}


def with_dead_driver(work: Path) -> Record:
    """``secateur grid`` on two nodes, killed after a third of the cells, and started again."""
    todo, out = cells(work), work / "out"
    shutil.rmtree(out, ignore_errors=True)
    with cluster(2, work) as made:
        command = [
            sys.executable, "-m", "secateur", "grid", str(work / "grid.toml"), "--engine", "ray",
            "--address", made.address, "--data", str(images(work)), "--out", str(out),
        ]  # fmt: skip
        start = time.monotonic()
        first = subprocess.Popen(command)  # noqa: S603 - our own words
        while len(digests(todo, out)) < len(todo) // 3:
            time.sleep(0.5)
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = digests(todo, out)
        times = {name: _written(out, name) for name in before}
        ended = round(time.monotonic() - start, 1)
        second = subprocess.run(command, check=False)  # noqa: S603
        again = [name for name in before if _written(out, name) != times[name]]
        return {
            "nodes": 2, "cells": len(todo), "done_before": len(before), "killed": [ended],
            "seconds": round(time.monotonic() - start, 2), "repeated": again,
            "errors": [] if second.returncode == 0 else [f"exit code {second.returncode}"],
            "digests": digests(todo, out), "stages": _stages(out),
        }  # fmt: skip


def _written(out: Path, name: str) -> int:
    return (out / "cells" / name / "records.jsonl").stat().st_mtime_ns


def on_storage(work: Path) -> Record:
    """The grid on two nodes that share an S3 server alone, which fails one request in twenty."""
    import fsspec

    from secateur.study.ray_engine import RayEngine

    with s3_server(SHARE) as (endpoint, served):
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint,
        }  # fmt: skip
        fsspec.filesystem("s3").mkdir("bucket")
        with cluster(2, work) as made:
            record = measured(RayEngine(made.address), work, "s3://bucket/grid")
        return record | {"nodes": 2, "requests": served.requests, "failures": served.failures}
