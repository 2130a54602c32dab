"""Loss of accuracy by options of quantization: ranges, equalization, rounding, training.

Run: python -m benchmarks int8_recovery RECIPE --data DIR --out results/int8/recovery.jsonl
     python -m benchmarks int8_recovery report --out results/int8/recovery.jsonl
The recipe's reference network is under --runs, trained if missing; it is not pruned. Recorded cells
are skipped. Nothing is chosen by the test images: all cells are shown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur import environment, recipe
from secateur.data import Images, Preparation, batches, load
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import Graph, read_model
from secateur.pipeline import open_chain
from secateur.quantization.aware import Trainable
from secateur.quantization.bits import BitPoint, scan_bits
from secateur.quantization.parity import compare
from secateur.quantization.post_training import (
    Quantized,
    Resources,
    quantize_graph,
    weight_rule,
)
from secateur.quantization.qdq import read_scheme, write_qdq
from secateur.quantization.scheme import make_scheme, weighted_nodes
from secateur.quantization.simulate import Simulated
from secateur.quantization.validation import ValidationSet
from secateur.recipe import load_recipe
from secateur.report.numbers import NONE, fixed, probability, signed
from secateur.runtimes import OnnxRuntime
from secateur.statistics import mcnemar, paired_drop, proportion
from secateur.store import Store
from secateur.training.checkpoint import remove_checkpoints
from secateur.training.evaluation import correct, scorer
from secateur.training.loop import train
from secateur.wording import counted

PLAIN: dict[str, Any] = {"rounding": "nearest", "correct_bias": False}
CORRECTED: dict[str, Any] = {"correct_bias": True}
PER_TENSOR: dict[str, Any] = {"per_channel": False}
CELLS: dict[str, dict[str, Any]] = {
    "8 bits, min-max": PLAIN,
    "8 bits, percentile": PLAIN | {"method": "percentile"},
    "8 bits, mean square error": PLAIN | {"method": "mse"},
    "8 bits, entropy": PLAIN | {"method": "entropy"},
    "8 bits, the whole of int8 (may saturate)": PLAIN | {"saturation_free": False},
    "8 bits, bias correction": PLAIN | CORRECTED,
    "8 bits, adaptive rounding": PLAIN | {"rounding": "adaptive"},
    "8 bits, the default": {},
    "8 bits, per tensor": PLAIN | PER_TENSOR,
    "8 bits, per tensor, equalized": PLAIN | PER_TENSOR | {"equalize": True},
    "8 bits, per tensor, equalized, bias correction": PLAIN
    | PER_TENSOR
    | CORRECTED
    | {"equalize": True},
    "4-bit weights, nearest": PLAIN | {"bits": 4},
    "4-bit weights, nearest, bias correction": PLAIN | CORRECTED | {"bits": 4},
    "4-bit weights, adaptive rounding": PLAIN | {"bits": 4, "rounding": "adaptive"},
    "4-bit weights, adaptive rounding, bias correction": CORRECTED
    | {"bits": 4, "rounding": "adaptive"},
    "4-bit weights, training": PLAIN | {"bits": 4, "epochs": 1},
    "3-bit weights, nearest": PLAIN | {"bits": 3},
    "3-bit weights, adaptive rounding": PLAIN | {"bits": 3, "rounding": "adaptive"},
    "3-bit weights, training": PLAIN | {"bits": 3, "epochs": 1},
    "mixed bits, 0.3 points on validation": {"bits": "mixed"},
}

PARITY = ("8 bits, the default", "4-bit weights, training")
"""Cells whose file is compared with its simulation on all test images, which is slow."""


class Subject:
    """A trained network as a float file, with its test images."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.recipe = load_recipe(options.recipe, options.set)
        self.pipeline = open_chain(
            self.recipe, Store(options.runs / "stages"), options.data, torch.device("cpu")
        )
        self.path = folder / "float.onnx"
        network = self.pipeline.load_network("train")
        export_onnx(network, self.pipeline.input_shape, self.path, {})
        self.training, self.validation = self.pipeline.parts
        self.prepare: Preparation = self.pipeline.prepare
        self.test = load(self.recipe.data.name, options.data, train=False).spread(options.images)
        self.folder, self.threads = folder, options.threads
        self.float_right = self.right(self.path)

    def right(self, path: Path) -> np.ndarray:
        """Whether a file classifies each test image correctly."""
        runtime = OnnxRuntime(path, self.threads)
        return correct(scorer(runtime), self.test, self.prepare)

    def calibration(self, count: int) -> torch.Tensor:
        """The calibration images of ``secateur quantize``."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        order = torch.randperm(len(self.training), generator=generator)[:count]
        return self.prepare(self.training.take(order).pixels).contiguous()


def scan(subject: Subject, config: recipe.Quantize, validation: ValidationSet) -> list[BitPoint]:
    """The scan of bits that mixed bits are chosen from."""
    if config.bits != "mixed":
        return []
    model = read_model(subject.path)
    return scan_bits(model, validation.images, validation.prepare, rule=weight_rule(config))


def trained(subject: Subject, done: Quantized, config: recipe.Quantize, images: int) -> Any:
    """The scheme after quantization-aware training on a number of training images."""
    network = Trainable(
        done.model, make_scheme(done.model, done.ranges, done.rules), done.rules
    ).to(memory_format=torch.channels_last)
    schedule = subject.recipe.train.model_copy(
        update={"epochs": config.epochs, "learning_rate": config.learning_rate}
    )
    some: Images = subject.training.spread(images)
    checkpoint = subject.folder / "checkpoint.safetensors"
    kept, _ = train(
        network, some, subject.validation.spread(1000), subject.prepare, schedule,
        seed=subject.recipe.seed, checkpoint=checkpoint,
    )  # fmt: skip
    remove_checkpoints(checkpoint)
    assert isinstance(kept, Trainable)
    return kept.learned()


def measure(
    subject: Subject, changes: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Quantize with one set of options, and measure the loss."""
    config = recipe.Quantize.model_validate(changes)
    validation = ValidationSet(subject.validation.spread(config.scan_images), subject.prepare)
    start = time.monotonic()
    images = subject.calibration(config.images)
    points = scan(subject, config, validation)
    done = quantize_graph(read_model(subject.path), images, config, Resources(validation), points)
    scheme = done.scheme
    if config.epochs:
        scheme = trained(subject, done, config, options.train_images)
    seconds = time.monotonic() - start
    path = subject.folder / "int8.onnx"
    write_qdq(done.model, scheme, path)
    parity = None
    if changes in [CELLS[cell] for cell in PARITY]:
        simulated = Simulated(done.model, read_scheme(done.model, path))
        runtime = OnnxRuntime(path, subject.threads)
        parity = compare(runtime, simulated, batches(subject.test, subject.prepare, 100)).to_dict()
    right = subject.right(path)
    bits = [
        done.rules.get(node.name, done.rules[""]).bits for node in weighted_nodes(Graph(done.model))
    ]
    weights = [layer.integers.size for layer in scheme.layers.values()]
    return {
        "quantize": config.model_dump(mode="json", exclude_defaults=True),
        "bits_per_weight": float(np.average(bits, weights=weights)),
        "top1": list(proportion(int(right.sum()), right.size)),
        "float_top1": list(proportion(int(subject.float_right.sum()), right.size)),
        "drop": list(paired_drop(subject.float_right, right)),
        "mcnemar_p": mcnemar(subject.float_right, right),
        "parity": parity,
        "test_images": right.size,
        "train_images": options.train_images if config.epochs else 0,
        "seconds": round(seconds, 1),
    }


def run(options: argparse.Namespace) -> None:
    """Measure missing cells."""
    existing = read(options.out)
    with tempfile.TemporaryDirectory() as folder:
        subject = None
        for name, changes in CELLS.items():
            cell = {"recipe": options.recipe, "cell": name, "images": options.images}
            skipped = options.cells and not any(part in name for part in options.cells)
            if skipped or any(cell.items() <= record.items() for record in existing):
                continue
            subject = subject or Subject(options, Path(folder))
            result = measure(subject, changes, options)
            about = {
                "network": subject.recipe.network.name,
                "geometry": subject.recipe.geometry,
                "dataset": subject.recipe.data.name,
                "sets": options.set or [],
                "threads": options.threads,
                "processor": environment.processor(),
                "versions": environment.versions(),
                "commit": environment.commit(),
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell | about | result) + "\n")
            print(
                options.recipe, name, f"{100 * result['top1'][0]:.2f} %", f"{result['seconds']} s"
            )


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; empty if it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


HEAD = """# Loss of accuracy by options of quantization

Made by `python -m benchmarks int8_recovery report --out results/int8/recovery.jsonl` from the
records beside it, which this command appends for each network:

    python -m benchmarks int8_recovery RECIPE --data DIR --out results/int8/recovery.jsonl

The reference network of the recipe, not pruned, as one float file; its batch-norms are folded.
Activations are uint8 per tensor, weights int8 per channel and free of saturation unless the row
says otherwise; {calibration} training images calibrate. Drop: float minus quantized, in points, on
the same test images, with its 95 % interval (Agresti and Min) and McNemar's exact p. Parity:
fraction of images with the same decision of the file in ONNX Runtime and its simulation in PyTorch;
*margin* is the largest margin of a different decision, in logits, with the median margin of all
images. Seconds: calibration, rounding and training, without the tests. The default corrects biases
if that has a lower cross-entropy on validation. Nothing was chosen by these numbers.
"""


def report(options: argparse.Namespace) -> None:
    """Write the tables beside the records."""
    lines = [HEAD.format(calibration=recipe.Quantize().images)]
    networks: dict[str, list[dict[str, Any]]] = {}
    for record in read(options.out):
        networks.setdefault(record["recipe"], []).append(record)
    for name, records in networks.items():
        first, last = records[0], records[-1]
        by_cell = {record["cell"]: record for record in records}
        top1 = [fixed(100 * bound) for bound in first["float_top1"]]
        lines += [
            f"## {first['network']}, {first['dataset']}, {first['geometry']}", "",
            f"`{name}`{''.join(f' `--set {change}`' for change in first['sets'])}; float top-1 "
            f"{top1[0]} % [{top1[1]}, {top1[2]}], n = {first['test_images']:,}.", "",
            "| Quantized | Bits a weight | Top-1, % | Drop, points | McNemar p | Parity, % "
            "| Margin (median) | Seconds |",
            "|---|" + "---:|" * 7,
            *(row(by_cell[cell]) for cell in CELLS if cell in by_cell),
            "",
            f"{last['processor']}; {counted(last['threads'], 'thread')}; "
            f"{', '.join(f'{k} {v}' for k, v in last['versions'].items())}; "
            f"commit {', '.join(sorted({record['commit'] for record in records}))}.", "",
        ]  # fmt: skip
    path = options.out.with_name("RECOVERY.md")
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def row(record: dict[str, Any]) -> str:
    """The table row of one cell."""
    parity = record["parity"]
    agreement = margin = NONE
    if parity is not None:
        agreement = fixed(100 * parity["agreement"])
        largest = max((d["file_margin"] for d in parity["differences"]), default=0.0)
        margin = f"{fixed(largest)} ({fixed(parity['typical_margin'])})"
    drop = [signed(100 * bound) for bound in record["drop"]]
    name = record["cell"]
    if record["train_images"]:
        name += f" on {record['train_images']:,} images"
    cells = [
        name,
        fixed(record["bits_per_weight"]),
        fixed(100 * record["top1"][0]),
        f"{drop[0]} [{drop[1]}, {drop[2]}]",
        probability(record["mcnemar_p"]).removeprefix("= "),
        agreement,
        margin,
        fixed(record["seconds"], 0),
    ]
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str]) -> None:
    """Measure, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a recipe, or `report`")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", metavar="KEY=VALUE")
    parser.add_argument("--cells", nargs="+", help="only those that contain one of these")
    parser.add_argument("--images", type=int, default=0, help="test images; 0 for all")
    parser.add_argument("--train-images", type=int, default=12_800)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    (report if options.recipe == "report" else run)(options)
