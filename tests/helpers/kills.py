"""Kill a run at random disk operations, over and over, and compare what comes out in the end.

Run: PYTHONPATH=src:tests python -m helpers.kills --kills 50 --out results/kills

Each call appends a line to OUT/measured.jsonl and writes OUT/README.md from all lines, so that many
kills can be spread over several calls.

A process forked from this one takes a tiny recipe down the whole chain. It is killed (SIGKILL) at a
random one of its writes, renames and removals; the next one goes on in the same store. When a run
ends, its records must be those of a run that nobody killed, but for times, and its ``net.sec`` must
have the same bytes. Then the next store begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

RECIPE = """
name = "tiny"
data = { name = "folder", validation = 0.25 }
network = { name = "shufflenet_v2_x1_0", resolution = 16 }
train = { epochs = 2, batch_size = 8, learning_rate = 0.05, ema = 0.9 }
scan = { fractions = [0.2, 0.5], layer_fractions = [0.5], images = 4, tolerance = 99 }
prune = { rounds = 1, epochs = 1 }
quantize = { images = 8 }
bench = { threads = 1, warmup = 1, repeats = 3 }
"""
TIMES = ("seconds", "epoch_seconds", "latency_ms", "unpack_seconds")
"""Metrics that differ from run to run."""

_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
_left: list[int] = []
NEVER = 2**62


def make_images(root: Path) -> None:
    """Two classes that any network can tell apart, 12 and 6 images of each."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("left", "right")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 60, (16, 16, 3))
                pixels[:, 8 * label : 8 * label + 8] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")


def outcome(out: Path) -> tuple[list[dict[str, Any]], bytes]:
    """All records but those of times, and the packed file."""
    (folder,) = out.glob("tiny-*")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [r for r in records if r["metric"] not in TIMES], (folder / "net.sec").read_bytes()


def die_at(moment: int, work: Callable[[], object], error: Path) -> int:
    """Do ``work`` in a forked process that is killed at disk operation ``moment``.

    Args:
        moment: 1 for the first operation; :data:`NEVER` lets it finish.
        work: What to do.
        error: Receives the traceback where ``work`` raises.

    Returns:
        Its exit status: 0 where it finished, ``os.WIFSIGNALED`` where it was killed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            _left.append(moment)
            work()
            code = 0
        except BaseException:
            error.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def attempt(recipe: Path, images: Path, out: Path, moment: int) -> int:
    """Run the chain as :func:`die_at` does."""
    from secateur.pipeline.run import run

    work = partial(run, str(recipe), data=images, out=out)
    return die_at(moment, work, out.parent / "error.txt")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _left:
        return
    if event == "open" and isinstance(arguments[2], int):
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        writes = event in _EVENTS
    if writes:
        _left[0] -= 1
        if _left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(_watch)


def kill_often(kills: int, seed: int, folder: Path, minutes: float = 1e9) -> dict[str, Any]:
    """Kill runs ``kills`` times, and finish the last one.

    Args:
        kills: How many, unless ``minutes`` are over before.
        seed: Decides at which operations.
        folder: An empty one.
        minutes: After that no more kills; the last run is finished.

    Returns:
        Counts of kills by stage, of finished runs, and of those that differed.

    Raises:
        RuntimeError: A run failed otherwise.
    """
    recipe, images = folder / "tiny.toml", folder / "images"
    recipe.write_text(RECIPE)
    make_images(images)
    if attempt(recipe, images, folder / "whole", NEVER):
        raise RuntimeError((folder / "error.txt").read_text())
    expected = outcome(folder / "whole")
    rng, where = random.Random(seed), Counter[str]()
    finished, different, begun = 0, 0, False
    end = time.monotonic() + 60 * minutes
    while (more := where.total() < kills and time.monotonic() < end) or begun:
        out = folder / f"run-{finished}"
        status = attempt(recipe, images, out, rng.randint(1, 60) if more else NEVER)
        begun = True
        if os.WIFSIGNALED(status):
            begun_stages = sorted(path.name for path in out.glob("stages/*.partial"))
            where[begun_stages[0].rpartition("-")[0] if begun_stages else "between stages"] += 1
            print(f"{where.total()} kills, {finished} runs", flush=True)
        elif status:
            raise RuntimeError((folder / "error.txt").read_text())
        else:
            different += outcome(out) != expected
            finished, begun = finished + 1, False
    return {
        "kills": where.total(),
        "by_stage": dict(sorted(where.items())),
        "finished_runs": finished,
        "different": different,
        "records_compared": len(expected[0]),
    }


def page(rows: list[dict[str, Any]]) -> str:
    """All parts so far as Markdown."""
    stages = Counter[str]()
    for row in rows:
        stages.update(row["by_stage"])
    total = {key: sum(row[key] for row in rows) for key in ("kills", "finished_runs", "different")}
    lines = [f"| {stage} | {count} |" for stage, count in sorted(stages.items())]
    where = sorted({f"{row['processor']}; torch {row['versions']['torch']}" for row in rows})
    return (
        "# Runs that are killed\n\n"
        "Made by `python -m helpers.kills` in `tests/`: a tiny recipe goes down the whole chain, "
        "from images to `net.sec`. Its process is killed (SIGKILL) at a random one of its writes, "
        "renames and removals; the next process goes on in the same store.\n\n"
        f"**{total['kills']} kills in {total['finished_runs']} runs. "
        f"{total['different']} of the runs differ** from a run that nobody killed: in one of its "
        f"{rows[0]['records_compared']} records (times apart), or in a byte of `net.sec`.\n\n"
        "| killed in stage | kills |\n| --- | ---: |\n"
        + "\n".join(lines)
        + f"\n\n{'; '.join(where)}; {sum(row['minutes'] for row in rows):.0f} minutes.\n"
    )


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from secateur import environment

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=1e9, help="then no more kills")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    measured = options.out / "measured.jsonl"
    rows = (
        [json.loads(row) for row in measured.read_text().splitlines()] if measured.exists() else []
    )
    seed, start = len(rows), time.monotonic()
    with TemporaryDirectory() as folder:
        figures = kill_often(options.kills, seed, Path(folder), options.minutes)
    figures |= {
        "seed": seed,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }
    rows.append(figures)
    measured.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (options.out / "README.md").write_text(page(rows))
    print(json.dumps(figures, indent=1))
    assert not figures["different"]


if __name__ == "__main__":
    main()
