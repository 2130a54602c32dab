"""One grid of 24 small cells: here, on simulated nodes, with lost nodes, without its driver."""

from __future__ import annotations

import hashlib
import json
import os
import random
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
from secateur.disk import write_json
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


def state_of(work: Path) -> Record:
    """What earlier attempts of a part came to, each of which may have been interrupted."""
    path = work / "state.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"seconds": 0.0, "ends": [], "errors": [], "killed": [], "attempts": 0}


def save(work: Path, state: Record) -> None:
    """Keep it for the next attempt."""
    write_json(work / "state.json", state)


def measured(engine: Engine, work: Path, state: Record, storage: str | None = None) -> Record:
    """Run the cells that are not done on an engine."""
    every, out = cells(work), work / "out"
    before, start = state["seconds"], time.monotonic()
    state["attempts"] += 1

    def finished(cell: Cell, error: str | None) -> None:
        state["seconds"] = round(before + time.monotonic() - start, 2)
        state["ends"].append(state["seconds"])
        state["errors"] += [f"{cell.name}: {error}"] if error else []
        save(work, state)
        print(f"{len(state['ends'])}/{len(every)} {cell.name}: {error or 'done'}", flush=True)

    todo = [cell for cell in every if not cell.is_done(out)]
    engine.run(todo, Work(out, images(work), storage), finished)
    return {**state, "cells": len(every), "digests": digests(every, out), "stages": _stages(out)}


def _stages(out: Path) -> int:
    return len(list((out / "stages").glob("*/stage.json")))


def local(work: Path) -> Record:
    """One process at a time on this machine, without Ray."""
    return measured(LocalEngine(["cpu"]), work, state_of(work))


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
        return measured(RayEngine(made.address), work, state_of(work)) | {"nodes": nodes}


def with_kills(work: Path) -> Record:
    """The grid on two nodes, of which one is killed at random, and replaced, ten times."""
    from secateur.study.ray_engine import RayEngine

    state, draw, over = state_of(work), random.Random(), Event()  # noqa: S311 - which, and when
    with cluster(2, work) as made:

        def kill() -> None:
            logs = set((work / "out").glob("cells/*/log.txt"))
            while not over.wait(1) and set((work / "out").glob("cells/*/log.txt")) <= logs:
                pass  # no cell has started
            while len(state["killed"]) < KILLS and not over.wait(draw.uniform(5, 15)):
                made.remove_node(draw.choice(list(made.worker_nodes)), allow_graceful=False)
                state["killed"].append(len(state["ends"]))
                save(work, state)
                print(f"killed node {len(state['killed'])}", flush=True)
                add_node(made, work, 1 + len(state["killed"]))

        thread = Thread(target=kill)
        thread.start()
        try:
            record = measured(RayEngine(made.address), work, state)
        finally:
            over.set()
            thread.join()
    return record | {"nodes": 2}


def with_dead_driver(work: Path) -> Record:
    """``secateur grid`` on two nodes, killed after a third of the cells, and started again."""
    every, out, state = cells(work), work / "out", state_of(work)
    start = time.monotonic()
    with cluster(2, work) as made:
        command = [
            sys.executable, "-m", "secateur", "grid", str(work / "grid.toml"), "--engine", "ray",
            "--address", made.address, "--data", str(images(work)), "--out", str(out),
        ]  # fmt: skip
        if not state["killed"]:
            driver = subprocess.Popen(command)  # noqa: S603 - our own words
            while len(digests(every, out)) < len(every) // 3:
                time.sleep(0.5)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            times = {name: _written(out, name) for name in digests(every, out)}
            state |= {"killed": [len(times)], "times": times}
            save(work, state)
        second = subprocess.run(command, check=False)  # noqa: S603
    times = state.pop("times")
    return state | {
        "nodes": 2, "cells": len(every), "seconds": round(time.monotonic() - start, 2),
        "repeated": [name for name in times if _written(out, name) != times[name]],
        "errors": [] if second.returncode == 0 else [f"exit code {second.returncode}"],
        "digests": digests(every, out), "stages": _stages(out),
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
            state = state_of(work)
            record = measured(RayEngine(made.address), work, state, "s3://bucket/grid")
        return record | {"nodes": 2, "requests": served.requests, "failures": served.failures}
