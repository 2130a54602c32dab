"""A synthetic ImageNet of 100 classes x 50 JPEGs in shards: images a second, and a whole run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common.records import Record
from secateur.data.images import in_turn, parts_of
from secateur.data.streamed import ShardDataSet
from secateur.imaging import Preparation
from secateur.records import read_records

CLASSES, EACH, HELD_OUT = 100, 50, 5
SIDE = (400, 300)
"""Width and height of a JPEG: a quarter of the pixels of ImageNet's mean, which is 400 x 350."""
REPEATS = 5
RECIPE = "mobilenet_v2-imagenet-paper"
TINY = (
    "network.resolution=32", "network.stem=cifar", "data.resize=36", "train.epochs=1",
    "train.batch_size=128", "train.precision=fp32", "train.shards=2", "train.warmup=0.25",
    "train.learning_rate=0.05", "scan.fractions=[0.3]", "scan.layer_fractions=[0.5]",
    "scan.images=100", "scan.threshold=0.3", "prune.epochs=1", "quantize.images=64",
    "bench.threads=1", "bench.repeats=5", "data.images=1500",
)  # fmt: skip


def make_shards(root: Path) -> None:
    """Write the JPEGs, each class with a color and a direction of its own, into tar files."""
    if (root / "val-0.tar").exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    order = [(i, c) for i in range(EACH) for c in range(CLASSES)]
    held = HELD_OUT * CLASSES
    for name, some in (
        ("train-0", order[held : held + 2250]), ("train-1", order[held + 2250 :]),
        ("val-0", order[:held]),
    ):  # fmt: skip
        with tarfile.open(root / f"{name}.partial", "w") as tar:
            for index, label in some:
                _add(tar, f"{index:03}-{label:03}.jpg", _jpeg(label, draw))
                _add(tar, f"{index:03}-{label:03}.cls", str(label).encode())
        (root / f"{name}.partial").rename(root / f"{name}.tar")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _jpeg(label: int, draw: np.random.Generator) -> bytes:
    width, height = SIDE
    color = np.random.default_rng(label).integers(40, 216, 3)
    angle, rows, columns = label / CLASSES * np.pi, *np.mgrid[:height:4, :width:4]
    wave = 40 * np.sin((rows * np.sin(angle) + columns * np.cos(angle)) / 12 + draw.uniform(0, 6))
    pixels = color + wave[:, :, None] + draw.normal(0, 12, (*wave.shape, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize(SIDE)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def throughput(work: Path) -> Record:
    """Images a second that are read, decoded, and decoded and resized to 232 and 36 pixels."""
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    make_shards(work / "images")
    start = time.perf_counter()
    data = ShardDataSet(work / "images", Preparation((0.5,) * 3, (0.5,) * 3, 224, 232))
    record: Record = {"index_seconds": time.perf_counter() - start, "images": CLASSES * EACH}
    encoded, count = data._parts["train"], 1000
    draw = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(encoded.labels), generator=draw)[:count]
    files = [encoded.read(index)[0] for index in chosen.tolist()]
    record["bytes_each"] = sum(map(len, files)) / count
    small = ShardDataSet(work / "images", Preparation((0.5,) * 3, (0.5,) * 3, 32, 36))
    batches = [chosen[part] for part in parts_of(count, 100)]
    ways: dict[str, Callable[[], object]] = {
        "read": lambda: [encoded.read(index) for index in chosen.tolist()],
        "decoded": lambda: [np.asarray(Image.open(io.BytesIO(file))) for file in files],
        "streamed_232": lambda: deque(in_turn(data.source.pixels, batches), maxlen=0),
        "streamed_36": lambda: deque(in_turn(small.source.pixels, batches), maxlen=0),
    }
    seconds = defaultdict(list)
    for _, (name, way) in product(range(REPEATS), ways.items()):  # in turns: the machine is busy
        start = time.perf_counter()
        way()
        seconds[name].append(time.perf_counter() - start)
    record |= {name: count / min(each) for name, each in seconds.items()}
    return record | {"threads": len(os.sched_getaffinity(0))}


def imagenet(work: Path) -> Record:
    """The recipe of ImageNet end to end at a tiny size, by two processes that train together."""
    make_shards(work.parent / "streams" / "images")
    command = [
        sys.executable, "-m", "secateur", "run", RECIPE, "--devices", "2", "--device", "cpu",
        "--data", str(work.parent / "streams" / "images"), "--out", str(work / "runs"),
    ]  # fmt: skip
    for change in TINY:
        command += ["--set", change]
    start = time.monotonic()
    env = os.environ | {"XDG_CACHE_HOME": str(work / "cache")}
    subprocess.run(command, check=True, env=env)  # noqa: S603 - our own words
    seconds = time.monotonic() - start
    (folder,) = (work / "runs").glob(f"{RECIPE}-*")
    records = read_records(folder / "records.jsonl")
    top1 = {r.variant: r.value for r in records if r.metric == "top1_percent"}
    stages = {str(r.at["stage"]): r.value for r in records if r.metric == "seconds"}
    return {"seconds": round(seconds, 1), "top1_percent": top1, "stages": stages, "processes": 2}
