"""The stages ``bench`` and ``pack``: measurements of the final files, and the packed file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from secateur.artifact.container import VERSION
from secateur.artifact.packing import pack, unpack
from secateur.benchmarking.cost import macs, nonzero_parameters, parameters
from secateur.benchmarking.measurement import measure
from secateur.benchmarking.timing import memory_mb
from secateur.data import Images, batches
from secateur.onnx_ir.model import read_model
from secateur.pipeline.chain import VARIANTS, Chain, changed_fields
from secateur.quantization.parity import compare
from secateur.quantization.qdq import read_scheme
from secateur.quantization.simulate import Simulated
from secateur.report.contents import Changes
from secateur.report.image_changes import image_changes
from secateur.report.layer_changes import layer_changes
from secateur.runtimes import open_file
from secateur.statistics import mcnemar, paired_drop, proportion
from secateur.store import save_tensors, write_bytes, write_json, write_text
from secateur.training.evaluation import BATCH


def bench_key(chain: Chain) -> dict[str, Any]:
    """Key of the measurements."""
    return {"bench": changed_fields(chain.recipe.bench)} | chain.data_set.test_key()


def make_bench(chain: Chain, folder: Path) -> None:
    """Measure the three files on this machine; only this stage reads the test images."""
    test = chain.data_set.test
    files: dict[str, Path] = {variant: chain.file(variant) for variant in VARIANTS}
    measured, logits = measure(files, test, chain.prepare, chain.recipe.bench)
    labels = test.labels.numpy()
    right = {variant: of.argmax(1) == labels for variant, of in logits.items()}
    measured["parity"] = _parity(chain, test)
    for variant in VARIANTS:
        network = chain.load_network("train" if variant == "reference" else "remove").cpu()
        measured["variants"][variant] |= {
            "parameters": parameters(network),
            "nonzero_parameters": nonzero_parameters(network),
            "macs": macs(network, chain.input_shape),
        }
    save_tensors(folder / "right.safetensors", {v: torch.from_numpy(r) for v, r in right.items()})
    write_json(folder / "bench.json", measured)
    changes = _changes(chain, files, test, logits, measured)
    write_text(folder / "changes.json", changes.model_dump_json(exclude_defaults=True))


def _changes(
    chain: Chain,
    files: dict[str, Path],
    test: Images,
    logits: dict[str, npt.NDArray],
    measured: dict[str, Any],
) -> Changes:
    """Data for the report beyond the records: layers, images, every timing, and memory."""
    labels, config = test.labels.numpy(), chain.recipe.bench
    image = next(batches(test, chain.prepare, 1))
    before, after = logits["reference"], logits["quantized"]
    return Changes(
        layers=layer_changes(files["reference"], files["quantized"], config.threads),
        images=image_changes(labels, before, after, test.classes, test.pixels),
        samples_ms={v: of["latencies_ms"] for v, of in measured["variants"].items()},
        memory_mb=memory_mb(files, image, config.threads, config.runtime),
    )


def _parity(chain: Chain, test: Images) -> dict[str, Any]:
    """Agreement of the quantized file with its simulation in PyTorch."""
    graph = read_model(chain.stage("quantize").folder / "float.onnx")
    path, config = chain.file("quantized"), chain.recipe.bench
    simulated = Simulated(graph, read_scheme(graph, path))
    runtime = open_file(path, config.threads, config.runtime)
    return compare(runtime, simulated, batches(test, chain.prepare, BATCH)).to_dict()


def pack_key(_: Chain) -> dict[str, Any]:
    """Key of the packed file."""
    return {"format": VERSION}


def make_pack(chain: Chain, folder: Path) -> None:
    """Pack the quantized file with its provenance."""
    content = pack(chain.file("quantized").read_bytes(), provenance(chain))
    write_bytes(folder / "net.sec", content)
    start = time.perf_counter()
    unpack((folder / "net.sec").read_bytes())
    seconds = time.perf_counter() - start
    write_json(folder / "pack.json", {"size_bytes": len(content), "unpack_seconds": seconds})


def provenance(chain: Chain) -> dict[str, Any]:
    """Provenance and accuracy stored in a packed file."""
    bench = chain.stage("bench")
    measured, manifest = bench.json("bench.json"), bench.manifest
    right = {v: r.numpy() for v, r in bench.tensors("right.safetensors").items()}
    decided = right["quantized"]
    correct, n = int(decided.sum()), len(decided)
    return {  # without times, so that two runs of a recipe give the same bytes
        "recipe": chain.recipe.model_dump(mode="json", exclude_defaults=True),
        "recipe_id": chain.recipe.id,
        "seed": chain.recipe.seed,
        "data": {
            "name": chain.recipe.data.name,
            "training_sha256": chain.data_facts["fingerprint"],
            "test_sha256": measured["test_fingerprint"],
        },
        "accuracy": {
            "correct": correct,
            "images": n,
            "top1": list(proportion(correct, n)),
            "drop": list(paired_drop(right["reference"], decided)),
            "mcnemar_p": mcnemar(right["reference"], decided),
        },
        "runtime": measured["runtime"],
        "threads": measured["threads"],
        **{key: manifest[key] for key in ("processor", "versions", "commit")},
    }
