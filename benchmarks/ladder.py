"""Parts of a speed-up: runtime, folding, pruning, int8, packing.

Run: python -m benchmarks ladder measure RECIPE --data DIR --out results/ladder/measured.jsonl
     python -m benchmarks ladder report --out results/ladder

Weights are those of the recipe's trained and pruned networks under --runs, made if missing. Time is
measured at 224x224 with torchvision's own strides, whatever resolution they were trained at.
Accuracy is that of the recipe's files on all test images. Existing cells are skipped without
--again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common.records import Record, append, is_there, pack
from benchmarks.ladder_report import write_report
from secateur import recipe
from secateur.artifact import packing
from secateur.benchmarking.cost import macs
from secateur.benchmarking.layer_timer import Layer, layer_graph
from secateur.benchmarking.timing import latencies
from secateur.models.build import build_network
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import read_model
from secateur.pipeline import Chain, open_chain
from secateur.pipeline.chain import plan_of
from secateur.profiling import explain
from secateur.pruning.surgery import rebuild
from secateur.quantization.post_training import quantize_graph
from secateur.quantization.qdq import write_qdq
from secateur.recipe import load_recipe
from secateur.runtimes import OnnxRuntime, Runtime
from secateur.runtimes.eager import Eager
from secateur.store import Stage, Store

SIDE = 224
CALIBRATION = 64
"""Number of resized training images for calibration."""
WARMUP = 20
CEILING = Layer("conv", 256, 256, 1, (56, 56), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
"""A large 3x3 convolution, for the peak rate of multiply-accumulates."""
MEMORY = 2**28
"""Bytes read to measure memory bandwidth, larger than any cache."""


def network_at(pipeline: Chain, stage: Stage, side: int) -> nn.Module:
    """A stage's network with its weights, in torchvision's own geometry at another side."""
    options = pipeline.recipe.network.model_copy(update={"resolution": side, "stem": "paper"})
    fresh = build_network(
        options, pipeline.input_shape[0], len(json.loads(pipeline.metadata["classes"]))
    )
    network = rebuild(fresh, plan_of(stage))
    network.load_state_dict(stage.tensors("weights.safetensors"))
    return network.eval()


def make_files(pipeline: Chain, folder: Path) -> dict[str, Path]:
    """The files of each rung at 224, lowest first; eager PyTorch needs none."""
    shape = (pipeline.input_shape[0], SIDE, SIDE)
    dense = network_at(pipeline, pipeline.stage("train"), SIDE)
    small = network_at(pipeline, pipeline.stage("remove"), SIDE)
    files = {name: folder / f"{name}.onnx" for name in ("runtime", "folded", "pruned", "int8")}
    export_onnx(dense, shape, files["runtime"], pipeline.metadata, straight=False)
    export_onnx(dense, shape, files["folded"], pipeline.metadata)
    export_onnx(small, shape, files["pruned"], pipeline.metadata)
    training, _ = pipeline.parts
    prepare = dataclasses.replace(pipeline.prepare, resolution=SIDE)
    images = prepare(training.spread(CALIBRATION).pixels).contiguous()
    result = quantize_graph(read_model(files["pruned"]), images, at_its_price(pipeline))
    write_qdq(result.model, result.scheme, files["int8"])
    files["packed"] = folder / "net.sec"
    files["packed"].write_bytes(packing.pack(files["int8"].read_bytes(), {}))
    return files


def at_its_price(pipeline: Chain) -> recipe.Quantize:
    """The recipe's quantization at the price that its validation images chose."""
    config, chosen = pipeline.recipe.quantize, pipeline.stage("quantize").json("chosen.json")
    price = chosen.get("price", {}).get("price", 0.0)
    return config.model_copy(update={"price": price, "correct_bias": False})


def bytes_of(network: nn.Module) -> int:
    """Bytes of float32 parameters and buffers."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def measure_time(pipeline: Chain, options: argparse.Namespace) -> Record:
    """Bytes, multiply-accumulates and times of every rung, and limits of the machine."""
    shape = (pipeline.input_shape[0], SIDE, SIDE)
    dense = network_at(pipeline, pipeline.stage("train"), SIDE)
    small = network_at(pipeline, pipeline.stage("remove"), SIDE)
    with tempfile.TemporaryDirectory() as root:
        files = make_files(pipeline, Path(root))
        runtimes: dict[str, Runtime] = {"eager": Eager(dense, options.threads)}
        for name, path in files.items():
            if name != "packed":  # it decodes to the int8 file, bit for bit
                runtimes[name] = OnnxRuntime(path, options.threads)
        drawn = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
        samples = latencies(runtimes, drawn, WARMUP, options.repeats)
        sizes = {"eager": bytes_of(dense)} | {k: p.stat().st_size for k, p in files.items()}
        explained = explain(files["int8"], options.threads, 50)
    return {
        "samples_ms": {key: np.round(result, 4).tolist() for key, result in samples.items()},
        "bytes": sizes,
        "macs": {"dense": macs(dense, shape), "pruned": macs(small, shape)},
        "parameters": {"dense": count(dense), "pruned": count(small)},
        "operators": explained.operators(),
        "ceilings": ceilings(options.threads),
        "threads": options.threads,
    }


def count(network: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def ceilings(threads: int) -> dict[str, float]:
    """Peak multiply-accumulates per second in fp32 and int8, and peak bytes read per second."""
    done = CEILING.weights * CEILING.result[0] * CEILING.result[1]
    images = np.random.default_rng(0).integers(0, 256, (1, CEILING.inputs, *CEILING.size))
    result = {}
    for precision, kind in (("fp32", np.float32), ("int8", np.uint8)):
        graph = layer_graph(CEILING, precision, 1)  # type: ignore[arg-type]
        runtime = OnnxRuntime(graph.SerializeToString(), threads)
        turns = latencies({"": runtime}, images.astype(kind), 3, 15)[""]  # type: ignore[arg-type]
        result[f"{precision}_macs_per_second"] = done / (turns.min() / 1e3)
    torch.set_num_threads(threads)
    block, seconds = torch.ones(MEMORY // 4), []
    for _ in range(8):
        start = time.perf_counter()
        block.sum()
        seconds.append(time.perf_counter() - start)
    return result | {"bytes_per_second": MEMORY / min(seconds)}


def measure_accuracy(pipeline: Chain) -> Record:
    """Correct test images of each file, from the recipe's ``bench`` stage."""
    right = pipeline.stage("bench").tensors("right.safetensors")
    return {
        "right": {variant: pack(result.numpy()) for variant, result in right.items()},
        "test_images": len(right["reference"]),
        "geometry": pipeline.recipe.geometry,
        "shipped_bytes": {
            **{v: pipeline.file(v).stat().st_size for v in ("reference", "pruned", "quantized")},  # type: ignore[arg-type]
            "packed": pipeline.packed_file.stat().st_size,
        },
    }


def measure(options: argparse.Namespace) -> None:
    """Measure one recipe's ladder, one record."""
    chosen = load_recipe(options.recipe, options.set, options.seed)
    cell = {"recipe": options.recipe, "recipe_id": chosen.id, "seed": chosen.seed}
    if not options.again and is_there(options.out, cell):
        return
    store = Store(options.runs / "stages")
    pipeline = open_chain(chosen, store, options.data, torch.device("cpu"))
    about: dict[str, Any] = {
        "network": chosen.network.name,
        "dataset": chosen.data.name,
        "sets": options.set or [],
    }
    record = cell | about | measure_accuracy(pipeline) | measure_time(pipeline, options)
    append(options.out, record, ())


def main(arguments: list[str]) -> None:
    """Measure, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure", help=measure.__doc__)
    measuring.add_argument("recipe")
    measuring.add_argument("--set", action="append", metavar="KEY=VALUE")
    measuring.add_argument("--seed", type=int)
    measuring.add_argument("--data", type=Path)
    measuring.add_argument("--runs", type=Path, default=Path("runs"))
    measuring.add_argument("--threads", type=int, default=2)
    measuring.add_argument("--repeats", type=int, default=200)
    measuring.add_argument("--again", action="store_true")
    measuring.add_argument("--out", type=Path, required=True, help="a .jsonl file")
    measuring.set_defaults(run=measure)
    reporting = commands.add_parser("report", help=write_report.__doc__)
    reporting.add_argument("--out", type=Path, required=True, help="the folder of measured.jsonl")
    reporting.set_defaults(run=lambda options: write_report(options.out))
    options = parser.parse_args(arguments)
    options.run(options)
