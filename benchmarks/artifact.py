"""Packed files: size against entropy and general compressors, accuracy, latency, decoding.

Run: python -m benchmarks artifact measure RECIPE --data DIR --runs runs [--set KEY=VALUE ...]
     python -m benchmarks artifact curve RECIPE --data DIR --runs runs [--set KEY=VALUE ...]
     python -m benchmarks artifact report
Records go to results/artifact/measured.jsonl, one line each; missing stages are made under --runs.
``measure`` runs the recipe's chain (without its scan) and measures the packed file; ``--control
NAME=FILE`` runs another float file on the same test images. ``curve`` rounds the pruned network at
many prices and packs each: bytes against the loss on validation. Needs zstandard, of the group
``peers``.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.artifact_report import write_report
from secateur import environment
from secateur.artifact.container import read_sections
from secateur.artifact.packing import TAGS, pack, unpack
from secateur.artifact.stream import Writer
from secateur.artifact.tensors import Banks, code_tensor
from secateur.benchmarking.timing import latencies
from secateur.data import batches, load
from secateur.onnx_ir.model import read_model
from secateur.pipeline import Chain, open_chain
from secateur.pipeline.quantization_stages import validation_images
from secateur.quantization.post_training import Resources, quantize_graph
from secateur.quantization.pricing import PRICES, scheme_by_price
from secateur.quantization.qdq import read_scheme, write_qdq
from secateur.quantization.scheme import Scheme
from secateur.quantization.simulate import Simulated
from secateur.recipe import load_recipe
from secateur.runtimes import OnnxRuntime
from secateur.statistics import mcnemar, paired_drop, spread
from secateur.store import Store
from secateur.training.evaluation import correct, scorer

Record = dict[str, Any]
ROOT = Path(__file__).parent.parent
OUT = ROOT / "results" / "artifact"
REPEATS = 200
DECODINGS = 5


def entropy_bytes(scheme: Scheme) -> float:
    """Order-0 entropy of the weights' integers, without the cost of the histograms."""
    total = 0.0
    for layer in scheme.layers.values():
        counts = np.unique(layer.integers, return_counts=True)[1]
        total -= float(counts @ np.log2(counts / layer.integers.size))
    return total / 8


def coded_bytes(integers: list[npt.NDArray[np.int32]]) -> int:
    """Bytes of the weights' integers by Secateur's coder."""
    writer, banks = Writer(), Banks()
    for layer in integers:
        code_tensor(writer, banks, layer.astype(np.int8), np.dtype("i1"), layer.shape)
    return len(writer.to_bytes())


def measure(chain: Chain, controls: dict[str, Path]) -> Record:
    """Measure the chain's packed file."""
    import zstandard  # of the group peers, and for this alone

    packed = chain.packed_file.read_bytes()
    onnx = unpack(packed).onnx
    assert onnx == chain.file("quantized").read_bytes()
    source = read_model(chain.stage("quantize").folder / "float.onnx")
    scheme = read_scheme(source, chain.file("quantized"))
    right = {v: r.numpy() for v, r in chain.stage("bench").tensors("right.safetensors").items()}
    integers = [layer.integers for layer in scheme.layers.values()]
    test = load(chain.recipe.data.name, chain.data_root, train=False)
    return {
        "kind": "file",
        "parameters": sum(p.numel() for p in chain.load_network("train").parameters()),
        "reference_bytes": chain.file("reference").stat().st_size,
        "onnx_bytes": len(onnx),
        "packed_bytes": len(packed),
        "sections": {t: len(s.stored) for t, s in read_sections(packed, TAGS).items()},
        "weights": sum(layer.size for layer in integers),
        "zeros": sum(int((layer == 0).sum()) for layer in integers),
        "entropy_bytes": entropy_bytes(scheme),
        "weights_bytes": coded_bytes(integers),
        "xz_bytes": len(lzma.compress(onnx, preset=9 | lzma.PRESET_EXTREME)),
        "zstd_bytes": len(zstandard.ZstdCompressor(level=19).compress(onnx)),
        "decode_seconds": decoding(packed),
        "chosen": chain.stage("quantize").json("chosen.json").get("price"),
        "test_images": len(right["reference"]),
        "right": {variant: int(result.sum()) for variant, result in right.items()},
        "drop": against(right["reference"], right["quantized"]),
        "drop_from_pruned": against(right["pruned"], right["quantized"]),
        "controls": {name: control(chain, path, right, test) for name, path in controls.items()},
        # Of the quantized file, which the packed one decodes to, as asserted above.
        "parity": chain.stage("bench").json("bench.json")["parity"],
        "latency_ms": timed(chain, onnx, test),
    }


def against(reference: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_]) -> Record:
    """Paired drop in points."""
    drop = [100 * bound for bound in paired_drop(reference, candidate)]
    return {"points": drop, "mcnemar_p": mcnemar(reference, candidate)}


def control(chain: Chain, path: Path, right: dict[str, Any], test: Any) -> Record:
    """Another float network on the same test images, and the packed file's drop against it."""
    runtime = OnnxRuntime(path, 2)
    others = correct(scorer(runtime), test, chain.prepare)
    return {"right": int(others.sum()), "drop": against(others, right["quantized"])}


def decoding(packed: bytes) -> list[float]:
    """Seconds to unpack on one core."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        times = []
        for _ in range(DECODINGS):
            start = time.perf_counter()
            unpack(packed)
            times.append(time.perf_counter() - start)
    finally:
        os.sched_setaffinity(0, everywhere)
    return times


def timed(chain: Chain, onnx: bytes, test: Any) -> Record:
    """Median, p10 and p90 of one image: the float files and the one that was unpacked, in turns."""
    runtimes = {
        "reference": OnnxRuntime(chain.file("reference"), 2),
        "pruned": OnnxRuntime(chain.file("pruned"), 2),
        "packed": OnnxRuntime(onnx, 2),
    }
    image = next(batches(test, chain.prepare, 1))
    samples = latencies(runtimes, image, 20, REPEATS)
    return {name: list(spread(values)) for name, values in samples.items()}


def curve(chain: Chain, prices: tuple[float, ...]) -> Iterator[Record]:
    """The pruned network at each price: bytes, and the loss on validation."""
    path = chain.stage("export").folder / "pruned.onnx"
    training, validation = chain.parts
    config = chain.recipe.quantize.model_copy(update={"price": 0.0})
    generator = torch.Generator().manual_seed(chain.recipe.seed)
    chosen = torch.randperm(len(training), generator=generator)[: config.images]
    images = chain.prepare(training.take(chosen).pixels).contiguous()
    validation = validation_images(chain)
    done = quantize_graph(read_model(path), images, config, Resources(validation))
    truth = validation.right(Simulated(done.model))
    scheme_at = scheme_by_price(done.model, done.scheme, done.rules, images, True)
    for price in (0.0, *prices):
        scheme = scheme_at(price) if price else done.scheme
        temporary = chain.store.root / "curve.onnx"
        write_qdq(done.model, scheme, temporary)
        packed = pack(temporary.read_bytes(), {})
        temporary.unlink()
        network = Simulated(done.model, scheme)
        yield {
            "kind": "price",
            "price": price,
            "packed_bytes": len(packed),
            "entropy_bytes": entropy_bytes(scheme),
            "loss": validation.loss(network),
            "validation_images": len(validation),
            "drop": [100 * bound for bound in paired_drop(truth, validation.right(network))],
        }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("measure", "curve", "report"))
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--control", action="append", default=[], metavar="NAME=FILE")
    options = parser.parse_args(arguments)
    if options.command == "report":
        write_report()
        return
    recipe = load_recipe(options.recipe, options.set)
    chain = open_chain(recipe, Store(options.runs / "stages"), options.data, torch.device("cpu"))
    about = {
        "recipe": options.recipe, "sets": options.set, "recipe_id": recipe.id,
        "network": recipe.network.name, "geometry": recipe.geometry, "seed": recipe.seed,
        "epochs": recipe.quantize.epochs, "processor": environment.processor(),
        "versions": environment.versions(), "commit": environment.commit(),
    }  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    if options.command == "measure":
        named = (given.partition("=") for given in options.control)
        result = iter([measure(chain, {name: Path(path) for name, _, path in named})])
    else:
        result = curve(chain, PRICES[2:15:2])
    with (OUT / "measured.jsonl").open("a", encoding="utf-8") as file:
        for record in result:
            file.write(json.dumps(record | about) + "\n")
            file.flush()
