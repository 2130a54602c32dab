"""Quantize torchvision's ResNet-18 as an ONNX file of 45 MB: seconds, processor time and memory.

Run: python -m benchmarks quantize_file [--network NAME] [--images N] [--side R] [--out FILE]
Weights are random, which changes neither time nor memory. Quantization runs in a separate process,
which reports its peak resident memory. The number of other running processes is recorded. Appends
one JSON record to FILE.
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
import torch
import torchvision

from benchmarks.common.records import append

RECORDS = Path(__file__).parents[1] / "results" / "quantize_file.jsonl"


def main(arguments: list[str]) -> None:
    """Export the network, quantize it in another process, and record time and memory."""
    parser = argparse.ArgumentParser(prog="benchmarks quantize_file", description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.inside is not None:
        print(json.dumps(quantize_in(chosen.inside)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), chosen.network, chosen.images, chosen.side)
        load = os.getloadavg()[0]
        command = [sys.executable, "-m", "benchmarks", "quantize_file", "--inside", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    measured = json.loads(done.stdout.splitlines()[-1])
    cell = {"network": chosen.network, "images": chosen.images, "side": chosen.side}
    record = cell | measured | {"load_before": round(load, 2), "cores": os.cpu_count()}
    append(chosen.out, record, ["torchvision"])
    print(json.dumps(record, indent=1))


def write_inputs(folder: Path, name: str, images: int, side: int) -> None:
    """Write the network as ONNX and its images as uint8."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(num_classes=1000)
    pixels = torch.randint(0, 256, (images, 3, side // 8, side // 8), dtype=torch.uint8)
    pixels = torch.nn.functional.interpolate(pixels, scale_factor=8.0)
    with torch.no_grad():
        network.train()(pixels[:8].float() / 128 - 1)
    torch.onnx.export(
        network.eval(), (torch.zeros(2, 3, side, side),), str(folder / "float.onnx"),
        dynamo=False, opset_version=17, input_names=["input"], dynamic_axes={"input": {0: "n"}},
    )  # fmt: skip
    np.save(folder / "images.npy", pixels.numpy())


def quantize_in(folder: Path) -> dict[str, object]:
    """Quantize the files of :func:`write_inputs`; seconds include imports."""
    start = time.perf_counter()
    import secateur

    pixels = np.load(folder / "images.npy")
    network = secateur.quantize(folder / "float.onnx", pixels, mean=[0.5] * 3, std=[0.25] * 3)
    written = network.save(folder / "int8.onnx")
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_bytes": used.ru_maxrss * 1024,
        "float_bytes": (folder / "float.onnx").stat().st_size,
        "int8_bytes": written.stat().st_size,
        "agreement": network.parity.to_dict(),
    }
