"""Secateur's int8 compared with fp32 and with int8 of other tools: latency and accuracy.

Run: python -m benchmarks int8 time --out results/int8/latency.jsonl
     python -m benchmarks int8 accuracy RECIPE --data DIR --out results/int8/accuracy.jsonl
     python -m benchmarks int8 report --out results/int8
Existing records are skipped without --again. Latency: all rows of a network are timed in turns, one
record for each network, with random weights. Accuracy: one record for each row, of the recipe's
reference network under --runs, trained if missing. Report reads both files and writes README.md
beside them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import tempfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.common.isolation import apart, silent
from benchmarks.common.records import Record, append, is_there, pack
from benchmarks.int8_report import write_report
from benchmarks.int8_rows import Array, all_rows
from secateur import data, recipe
from secateur.benchmarking.timing import latencies
from secateur.models.build import build_network
from secateur.onnx_ir.export import export_onnx
from secateur.pipeline import open_chain
from secateur.recipe import load_recipe
from secateur.store import Store

WARMUP = 20
NETWORKS = ("mobilenet_v2", "shufflenet_v2_x1_0", "alexnet")
BATCH = 50
PACKAGES = ("openvino", "nncf")


# ---- latency


def untrained(name: str, side: int) -> nn.Module:
    """A network with random weights and batch-norm statistics of noise."""
    config = recipe.Network.model_validate({"name": name, "resolution": side})
    model = build_network(config, 3, 10, 0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(4):
            model.train()(torch.randn(8, 3, side, side))
    return model.eval()


def make_and_try(key: str, float_path: Path, images: Array, folder: Path, threads: int) -> Record:
    """Make a row's files and run one image, to detect crashes."""
    row = all_rows()[key]
    with silent():
        files = row.make(float_path, images, folder)
        row.open(files[0], threads).run(images[:1])
    return {"files": files, "bytes": sum(file.stat().st_size for file in files)}


def time_network(name: str, options: argparse.Namespace) -> dict[str, Record]:
    """By row, its bytes and samples or its error."""
    side, rows = options.resolution, all_rows()
    drawn = np.random.default_rng(0).standard_normal((options.calibration, 3, side, side))
    images = drawn.astype(np.float32)
    with tempfile.TemporaryDirectory() as root:
        float_path = Path(root) / "float.onnx"
        export_onnx(untrained(name, side), (3, side, side), float_path, {}, straight=False)
        result: dict[str, Record] = {}
        for key in rows:
            folder = Path(root) / key
            folder.mkdir()
            result[key] = apart(make_and_try, key, float_path, images, folder, options.threads)
        files = {key: made.pop("files")[0] for key, made in result.items() if "files" in made}
        runtimes = {key: rows[key].open(file, options.threads) for key, file in files.items()}
        for key, samples in latencies(runtimes, images[:1], WARMUP, options.repeats).items():
            result[key]["milliseconds"] = [round(float(sample), 3) for sample in samples]
    return result


def run_time(options: argparse.Namespace) -> None:
    """Time each network, one record each."""
    for name in options.networks:
        cell = {"network": name, "resolution": options.resolution, "threads": options.threads}
        if options.again is None and is_there(options.out, cell):
            continue
        result = {"calibration": options.calibration, "rows": time_network(name, options)}
        append(options.out, cell | result, PACKAGES)


# ---- accuracy


def load(
    float_path: Path, options: argparse.Namespace, train: bool
) -> tuple[data.Images, data.Preparation]:
    """Images prepared as in a float file's metadata: test or calibration images."""
    proto = onnx.load(float_path, load_external_data=False)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    mean, std = tuple(json.loads(about["mean"])), tuple(json.loads(about["std"]))
    prepare = data.Preparation(mean, std, int(about["resolution"]))
    images = data.load(json.loads(about["name"]), options.data, train=train)
    if not train:
        return images.spread(options.images), prepare
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.take(order[: options.calibration]), prepare


def decide(key: str, options: argparse.Namespace) -> Record:
    """Make one row's files, and compute its decisions on every test image."""
    row = all_rows(options.own)[key]
    chosen, prepare = load(options.float, options, train=True)
    test, _ = load(options.float, options, train=False)
    with tempfile.TemporaryDirectory() as folder, silent():
        calibration = next(data.batches(chosen, prepare, len(chosen)))
        files = row.make(options.float, calibration, Path(folder))
        runtime = row.open(files[0], options.threads)
        logits = [runtime.run(batch) for batch in data.batches(test, prepare, BATCH)]
        weight = sum(file.stat().st_size for file in files)
    classes = np.concatenate(logits).argmax(1).astype(np.uint8)
    right = classes == test.labels.numpy()
    return {
        "bytes": weight,
        "right": pack(right),
        "classes": base64.b64encode(zlib.compress(classes.tobytes(), 9)).decode(),
        "test_images": len(test),
        "resolution": prepare.resolution,
    }


def export_reference(options: argparse.Namespace, path: Path) -> str:
    """Write the recipe's trained network as a float file, shuffles kept; return its name."""
    chosen = load_recipe(options.recipe, options.set)
    pipeline = open_chain(chosen, Store(options.runs / "stages"), options.data, torch.device("cpu"))
    network = pipeline.load_network("train")
    export_onnx(network, pipeline.input_shape, path, pipeline.metadata, straight=False)
    return chosen.network.name


def run_accuracy(options: argparse.Namespace) -> None:
    """Run each row of one trained network on the test images, one record each."""
    with tempfile.TemporaryDirectory() as folder:
        options.float = Path(folder) / "float.onnx"
        network = export_reference(options, options.float)
        digest = hashlib.sha256(options.float.read_bytes()).hexdigest()[:12]
        for key in all_rows():
            cell = {"network": network, "float": digest, "calibration": options.calibration}
            cell |= {"images": options.images, "row": key}
            is_missing = options.again is not None and (not options.again or key in options.again)
            if is_missing or not is_there(options.out, cell):
                about = {
                    "recipe": options.recipe,
                    "sets": options.set or [],
                    "threads": options.threads,
                }
                append(options.out, cell | apart(decide, key, options) | about, PACKAGES)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    timing = commands.add_parser("time", help=run_time.__doc__)
    timing.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    timing.add_argument("--repeats", type=int, default=200)
    timing.add_argument("--resolution", type=int, default=224)
    timing.add_argument("--calibration", type=int, default=8, help="noise images")
    timing.add_argument("--again", action="store_const", const=True, help="even if it exists")
    timing.set_defaults(run=run_time)
    judging = commands.add_parser("accuracy", help=run_accuracy.__doc__)
    judging.add_argument("recipe", help="whose reference network is quantized")
    judging.add_argument("--set", action="append", metavar="KEY=VALUE", help="changes to it")
    judging.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are")
    judging.add_argument("--data", type=Path, help="folder of the data set")
    judging.add_argument("--calibration", type=int, default=512, help="training images")
    judging.add_argument("--images", type=int, default=0, help="test images; 0 for all")
    judging.add_argument("--own", type=Path, help="Secateur's int8 file, instead of a new one")
    judging.add_argument("--again", nargs="*", metavar="ROW", help="these rows, or all")
    judging.set_defaults(run=run_accuracy)
    reporting = commands.add_parser("report", help=write_report.__doc__)
    reporting.set_defaults(run=lambda options: write_report(options.out))
    for command in (timing, judging):
        command.add_argument("--threads", type=int, default=2)
    for command in (timing, judging, reporting):
        command.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Run one of the commands."""
    options = parse(arguments)
    options.run(options)
