"""Time and memory of packing a large ONNX file.

Run: python -m benchmarks pack_time [--megabytes N] [--kind float | int8] [--out FILE]
The weights are normally distributed; int8 weights are clipped at three standard deviations. Packing
includes one decoding, to compare. It runs in a separate process. Appends one JSON record to FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.common.records import append

RECORDS = Path(__file__).parents[1] / "results" / "pack_time.jsonl"
SIDE = 2000
"""Of each weight, a square matrix."""


def write_network(path: Path, megabytes: int, kind: str) -> None:
    """Write a file of about ``megabytes`` (10^6 bytes)."""
    rng = np.random.default_rng(0)
    size = SIDE * SIDE * (4 if kind == "float" else 1)
    tensors, nodes = [], []
    for number in range(max(1, round(1e6 * megabytes / size))):
        weight = rng.standard_normal((SIDE, SIDE), np.float32)
        if kind == "int8":
            weight = np.clip(np.round(weight * 127 / 3), -127, 127).astype(np.int8)
        else:
            weight *= 0.02
        tensors.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node("Identity", [f"w{number}"], [f"y{number}"]))
    graph = helper.make_graph(nodes, "graph", [], [], tensors)
    onnx.save(helper.make_model(graph), path)


def pack_in(folder: Path) -> dict[str, object]:
    """Pack what :func:`write_network` wrote."""
    from secateur.artifact.packing import pack

    data = (folder / "net.onnx").read_bytes()
    start = time.perf_counter()
    packed = pack(data, {})
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_bytes": used.ru_maxrss * 1024,
        "onnx_bytes": len(data),
        "packed_bytes": len(packed),
    }


def main(arguments: list[str]) -> None:
    """Write the network, pack it in another process, and record what that took."""
    parser = argparse.ArgumentParser(prog="benchmarks pack_time", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=144)
    parser.add_argument("--kind", choices=("float", "int8"), default="float")
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.inside is not None:
        print(json.dumps(pack_in(chosen.inside)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_network(Path(folder) / "net.onnx", chosen.megabytes, chosen.kind)
        load = os.getloadavg()[0]
        command = [sys.executable, "-m", "benchmarks", "pack_time", "--inside", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    measured = json.loads(done.stdout.splitlines()[-1])
    record = {"kind": chosen.kind} | measured | {"load_before": round(load, 2)}
    append(chosen.out, record, ())
    print(json.dumps(record, indent=1))
