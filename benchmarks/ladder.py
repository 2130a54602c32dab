"""Where a speed-up comes from: eager PyTorch, runtime, folding, pruning, int8, packing.

Run: python benchmarks/ladder.py measure RECIPE --data DIR --out results/ladder/measured.jsonl
     python benchmarks/ladder.py report --out results/ladder

Weights are those of the recipe's trained and pruned networks, made first or found under --runs.
Time is at 224x224 with torchvision's own strides, whatever side they were trained at: convolutions
and a pooled classifier take any. Accuracy is of the files that ship, on all test images. A cell
that is there is not made again without --again.
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
from json_lines import Record, append, is_there, pack
from ladder_report import write_report
from torch import nn

from secateur import recipe
from secateur.artifact import packing
from secateur.benchmarking.cost import macs
from secateur.benchmarking.layer_timer import Layer, layer_graph
from secateur.benchmarking.timing import latencies
from secateur.models.build import build_network
from secateur.onnx_ir.export import export_onnx
from secateur.pipeline import Chain, open_chain
from secateur.pipeline.chain import plan_of
from secateur.profiling import explain
from secateur.pruning.surgery import rebuild
from secateur.quantization.qdq import write_qdq
from secateur.quantization.quantize import quantize
from secateur.recipe import load_recipe
from secateur.runtimes import Eager, OnnxRuntime, Runtime
from secateur.store import Stage, Store

SIDE = 224
CALIBRATION = 64
"""Training images, resized; time depends on none of them, bytes on ranges hardly."""
WARMUP = 20
CEILING = Layer("conv", 256, 256, 1, (56, 56), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
"""A large 3x3 convolution: as many multiply-accumulates a second as a network can hope for."""
MEMORY = 2**28
"""Bytes that are read to find how fast memory is: more than any cache holds."""


def network_at(pipeline: Chain, stage: Stage, side: int) -> nn.Module:
    """A stage's network with its weights, in torchvision's own geometry at another side."""
    said = pipeline.recipe.network.model_copy(update={"resolution": side, "stem": "paper"})
    fresh = build_network(
        said, pipeline.input_shape[0], len(json.loads(pipeline.metadata["classes"]))
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
    found = quantize(files["pruned"], images, at_its_price(pipeline))
    write_qdq(found.model, found.scheme, files["int8"])
    files["packed"] = folder / "net.sec"
    files["packed"].write_bytes(packing.pack(files["int8"].read_bytes(), {}))
    return files


def at_its_price(pipeline: Chain) -> recipe.Quantize:
    """The recipe's quantization at the price that its validation images chose."""
    config, chosen = pipeline.recipe.quantize, pipeline.stage("quantize").json("chosen.json")
    price = chosen.get("price", {}).get("price", 0.0)
    return config.model_copy(update={"price": price, "correct_bias": False})


def bytes_of(network: nn.Module) -> int:
    """Of float32 weights and statistics, as a checkpoint holds them."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def measure_time(pipeline: Chain, said: argparse.Namespace) -> Record:
    """Every rung's bytes, multiply-accumulates and times, and what the machine could do."""
    shape = (pipeline.input_shape[0], SIDE, SIDE)
    dense = network_at(pipeline, pipeline.stage("train"), SIDE)
    small = network_at(pipeline, pipeline.stage("remove"), SIDE)
    with tempfile.TemporaryDirectory() as root:
        files = make_files(pipeline, Path(root))
        runtimes: dict[str, Runtime] = {"eager": Eager(dense, said.threads)}
        for name, path in files.items():
            if name != "packed":  # it decodes to the int8 file, bit for bit
                runtimes[name] = OnnxRuntime(path, said.threads)
        drawn = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
        samples = latencies(runtimes, drawn, WARMUP, said.repeats)
        sizes = {"eager": bytes_of(dense)} | {k: p.stat().st_size for k, p in files.items()}
        explained = explain(files["int8"], said.threads, 50)
    return {
        "samples_ms": {key: np.round(found, 4).tolist() for key, found in samples.items()},
        "bytes": sizes,
        "macs": {"dense": macs(dense, shape), "pruned": macs(small, shape)},
        "parameters": {"dense": count(dense), "pruned": count(small)},
        "operators": explained.operators(),
        "ceilings": ceilings(said.threads),
        "threads": said.threads,
    }


def count(network: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def ceilings(threads: int) -> dict[str, float]:
    """Multiply-accumulates a second in fp32 and int8, and bytes read a second, at best."""
    done = CEILING.weights * CEILING.result[0] * CEILING.result[1]
    images = np.random.default_rng(0).integers(0, 256, (1, CEILING.inputs, *CEILING.size))
    found = {}
    for precision, kind in (("fp32", np.float32), ("int8", np.uint8)):
        graph = layer_graph(CEILING, precision, 1)  # type: ignore[arg-type]
        runtime = OnnxRuntime(graph.SerializeToString(), threads)
        turns = latencies({"": runtime}, images.astype(kind), 3, 15)[""]  # type: ignore[arg-type]
        found[f"{precision}_macs_per_second"] = done / (turns.min() / 1e3)
    torch.set_num_threads(threads)
    block, spent = torch.ones(MEMORY // 4), []
    for _ in range(8):
        start = time.perf_counter()
        block.sum()
        spent.append(time.perf_counter() - start)
    return found | {"bytes_per_second": MEMORY / min(spent)}


def measure_accuracy(pipeline: Chain) -> Record:
    """Which test images each file that ships gets right, from the recipe's own bench."""
    right = pipeline.stage("bench").tensors("right.safetensors")
    return {
        "right": {variant: pack(found.numpy()) for variant, found in right.items()},
        "test_images": len(right["reference"]),
        "geometry": pipeline.recipe.geometry,
        "shipped_bytes": {
            **{v: pipeline.file(v).stat().st_size for v in ("reference", "pruned", "quantized")},  # type: ignore[arg-type]
            "packed": pipeline.packed_file.stat().st_size,
        },
    }


def measure(said: argparse.Namespace) -> None:
    """Measure one recipe's ladder, one record."""
    chosen = load_recipe(said.recipe, said.set, said.seed)
    cell = {"recipe": said.recipe, "recipe_id": chosen.id, "seed": chosen.seed}
    if not said.again and is_there(said.out, cell):
        return
    store = Store(said.runs / "stages")
    pipeline = open_chain(chosen, store, said.data, torch.device("cpu"))
    about: dict[str, Any] = {
        "network": chosen.network.name,
        "dataset": chosen.data.name,
        "sets": said.set or [],
    }
    record = cell | about | measure_accuracy(pipeline) | measure_time(pipeline, said)
    append(said.out, record, ())


def main() -> None:
    """Do what is asked."""
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
    reporting.set_defaults(run=lambda said: write_report(said.out))
    said = parser.parse_args()
    said.run(said)


if __name__ == "__main__":
    main()
