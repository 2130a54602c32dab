"""Quantize ONNX files of other exporters without training: time, memory, agreement, bytes.

Run: python -m benchmarks quantize_file [--network NAME]... [--images N] [--side R] [--out FILE]
Without --network: all of NETWORKS that are not in FILE yet. Weights are random and batch-norms have
the statistics of the images, which changes neither time nor memory. Quantization runs in a separate
process, which reports its peak resident memory. Then the file is packed, unpacked and loaded, and
classifies images. The number of other running processes is recorded. Appends one JSON record to
FILE for each network.
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
from torch import nn

from benchmarks.common.isolation import in_one_line
from benchmarks.common.markdown import made_with, table
from benchmarks.common.records import Record, append, read
from secateur.models.networks import build_described
from secateur.report.numbers import NONE, size

RECORDS = Path(__file__).parents[1] / "results" / "quantize_file.jsonl"
NETWORKS = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:mobilenet_v3_small",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny",
    "timm:vit_tiny_patch16_224",
    "torchvision:regnet_y_400mf",
    "torchvision:alexnet",
    "torchvision:mobilenet_v2",
    "torchvision:shufflenet_v2_x1_0",
)
CLASSES = 1000
PREDICTED = 64
"""Number of images that the packed file classifies."""


def main(arguments: list[str]) -> None:
    """Export networks, quantize each in another process, and record time, memory and bytes."""
    parser = argparse.ArgumentParser(prog="benchmarks quantize_file", description=__doc__)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.inside is not None:
        print(json.dumps(quantize_in(chosen.inside)))
        return
    there = {record["network"] for record in read(chosen.out) if "packed_bytes" in record}
    for name in chosen.network or [name for name in NETWORKS if short(name) not in there]:
        record = measured(name, chosen.images, chosen.side)
        append(chosen.out, record, ["torchvision", "timm"])
        print(json.dumps(record, indent=1))


def short(name: str) -> str:
    """The name of a network without its library."""
    return name.partition(":")[2]


def measured(name: str, images: int, side: int) -> Record:
    """The record of one network, or its error."""
    cell = {"network": short(name), "images": images, "side": side}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), name, images, side)
        command = [sys.executable, "-m", "benchmarks", "quantize_file", "--inside", folder]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False
        )
        if done.returncode:
            return cell | {"error": done.stderr.strip().splitlines()[-1][:300]}
        result = json.loads(done.stdout.splitlines()[-1])
        try:
            result |= pack_and_predict(Path(folder))
        except Exception as error:  # recorded, so that the other networks go on
            result["error"] = in_one_line(error)
    return cell | result | {"load_before": round(load, 2), "cores": os.cpu_count()}


def write_inputs(folder: Path, name: str, images: int, side: int) -> None:
    """Write the network as ONNX and its images as uint8."""
    torch.manual_seed(0)
    network = build_described(name, CLASSES, 3)
    pixels = torch.randint(0, 256, (images, 3, side // 8, side // 8), dtype=torch.uint8)
    pixels = torch.nn.functional.interpolate(pixels, scale_factor=8.0)
    settle(network, pixels[:32].float() / 64 - 2)
    torch.onnx.export(
        network, (torch.zeros(2, 3, side, side),), str(folder / "float.onnx"),
        dynamo=False, opset_version=17, input_names=["input"], dynamic_axes={"input": {0: "n"}},
    )  # fmt: skip
    np.save(folder / "images.npy", pixels.numpy())


@torch.no_grad()
def settle(network: nn.Module, images: torch.Tensor) -> None:
    """Give batch-norms the statistics of some images, and leave the network in inference mode."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            module.train()
    for batch in images.split(8):
        network(batch)
    network.eval()


def quantize_in(folder: Path) -> Record:
    """Quantize the files of :func:`write_inputs`; seconds include imports."""
    start = time.perf_counter()
    import secateur

    pixels = np.load(folder / "images.npy")
    names = [str(number) for number in range(CLASSES)]
    network = secateur.quantize(
        folder / "float.onnx", pixels, classes=names, mean=[0.5] * 3, std=[0.25] * 3
    )
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


def pack_and_predict(folder: Path) -> Record:
    """Pack the quantized file, compare what it unpacks to, and classify images with it."""
    import secateur
    from secateur.runtimes import OnnxRuntime

    start = time.perf_counter()
    packed = secateur.pack(folder / "int8.onnx", folder / "net.sec")
    seconds = time.perf_counter() - start
    unpacked = secateur.unpack(packed, folder / "unpacked.onnx").read_bytes()
    pixels = np.load(folder / "images.npy")[:PREDICTED]
    predicted = secateur.load(packed)(pixels).argmax(1)
    prepared = ((pixels.astype(np.float32) / 255 - 0.5) / 0.25).astype(np.float32)
    same = OnnxRuntime(folder / "int8.onnx", 1).run(prepared).argmax(1) == predicted
    return {
        "pack_seconds": round(seconds, 2),
        "packed_bytes": packed.stat().st_size,
        "unpacks_to_the_same_bytes": unpacked == (folder / "int8.onnx").read_bytes(),
        "predicted": len(predicted),
        "predicted_alike": int(same.sum()),
    }


# ---- the table

HEADINGS = [
    "ONNX file", "Float", "int8", "Packed", "Quantized, s", "Peak memory", "Top-1 as in float",
    "Unpacks to the same bytes", "Predicted from net.sec as from the file",
]  # fmt: skip


def files_block() -> str:
    """The newest record of each network, for results/compress/README.md."""
    rows = {record["network"]: record for record in read(RECORDS)}
    lines = table(HEADINGS, [cells(record) for record in rows.values()])
    about = made_with([record | {"threads": record["cores"]} for record in rows.values()])
    return "\n".join([*lines, "", about])


def cells(record: Record) -> list[str]:
    """One row."""
    if "agreement" not in record:
        return [record["network"], record["error"], *[""] * (len(HEADINGS) - 2)]
    agreement = record["agreement"]
    packed = [size(record["packed_bytes"])] if "packed_bytes" in record else [NONE]
    last = [NONE, record.get("error", NONE)]
    if "packed_bytes" in record:
        same = "yes" if record["unpacks_to_the_same_bytes"] else "no"
        last = [same, f"{record['predicted_alike']} of {record['predicted']}"]
    return [
        f"{record['network']}, {record['side']}x{record['side']}",
        size(record["float_bytes"]),
        size(record["int8_bytes"]),
        *packed,
        f"{record['seconds']:.1f}",
        size(record["peak_bytes"]),
        f"{agreement['same']} of {agreement['images']}",
        *last,
    ]
