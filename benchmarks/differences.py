"""Measures causes of differing results one by one on a trained network.

Run: python -m benchmarks differences measure RECIPE --data DIR --out results/differences
     python -m benchmarks differences report --out results/differences

Cells in measured.jsonl are skipped. docs/differences.md explains the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common.markdown import table
from benchmarks.common.records import append, is_there, read
from secateur.benchmarking.layer_timer import Layer, layer_graph
from secateur.benchmarking.timing import latencies
from secateur.data import Images, load
from secateur.onnx_ir.model import read_model
from secateur.pipeline import Chain, open_chain
from secateur.quantization.affine import Grid, from_range
from secateur.quantization.calibrate import calibrate
from secateur.quantization.placement import joint_range
from secateur.quantization.scheme import Scheme, make_scheme
from secateur.quantization.simulate import Simulated
from secateur.recipe import load_recipe
from secateur.report.numbers import fixed, signed, significant
from secateur.runtimes import OnnxRuntime
from secateur.statistics import paired_drop, proportion
from secateur.store import Store
from secateur.training.evaluation import correct, correctness

Result = dict[str, Any]
DRAWS = 5
WIDTHS = (56, 58, 64, 112, 116, 128)
"""Widths around ShuffleNetV2's first two depthwise widths, 58 and 116."""
RETRAIN = ("finetune", "rewind", "reinit")
RETRAIN_EPOCHS = 3


def drop(reference: npt.NDArray[np.bool_], result: npt.NDArray[np.bool_]) -> Result:
    """Paired drop in points, and the accuracy."""
    points = [100 * bound for bound in paired_drop(reference, result)]
    accuracy = [100 * bound for bound in proportion(int(result.sum()), result.size)]
    return {"top1_percent": accuracy, "drop_points": points, "images": result.size}


class Network:
    """A recipe's trained reference, the test images, and its decisions."""

    def __init__(self, pipeline: Chain) -> None:
        self.pipeline = pipeline
        self.module = pipeline.load_network("train")
        self.test = load(pipeline.recipe.data.name, pipeline.data_root, train=False)
        self.right = correctness(self.module, self.test, pipeline.prepare)

    def ranges(self, count: int, seed: int) -> dict[str, Any]:
        """Ranges of the float graph's activations on ``count`` training images."""
        training, _ = self.pipeline.parts
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
        images = self.pipeline.prepare(training.take(order[:count]).pixels).contiguous().numpy()
        return calibrate(self.graph, np.array_split(images, -(-count // 64)), "minmax")

    @property
    def graph(self) -> Any:
        """The exported float graph of the reference."""
        return read_model(self.pipeline.file("reference"))

    def decide(self, scheme: Scheme) -> npt.NDArray[np.bool_]:
        """Whether the network with a scheme classifies each test image correctly."""
        return correct(Simulated(self.graph, scheme), self.test, self.pipeline.prepare)


def test_time_flips(network: Network) -> Result:
    """Random horizontal flips at test time, as the published code has on CIFAR-10."""
    generator, result = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        flipped = torch.rand(len(network.test), generator=generator) < 0.5
        pixels = network.test.pixels
        pixels = torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)
        images = Images(pixels, network.test.labels, network.test.classes)
        result.append(correctness(network.module, images, network.pipeline.prepare))
    each = [100 * float(right.mean()) for right in result]
    return drop(network.right, result[0]) | {"draws": each}


def unshuffled_split(network: Network) -> Result:
    """The first fifth of the training set for validation: how many images of each class."""
    recipe = network.pipeline.recipe
    labels = load(recipe.data.name, network.pipeline.data_root, train=True).labels
    first = torch.bincount(labels[: len(labels) // 5])
    return {"images_of_each_class": first.tolist(), "even": len(labels) // 5 / len(first)}


def one_batch(network: Network) -> Result:
    """Calibration on one batch of 50 images, as published, five different ones; then on 512."""
    each = [
        network.decide(make_scheme(network.graph, network.ranges(50, seed)))
        for seed in range(DRAWS)
    ]
    many = network.decide(make_scheme(network.graph, network.ranges(512, 0)))
    return {"50": [drop(network.right, right) for right in each], "512": drop(network.right, many)}


def seven_bits(network: Network) -> Result:
    """Activations with 128 levels, as in torch.ao's fbgemm configuration, instead of 256."""
    ranges = network.ranges(512, 0)
    scheme = make_scheme(network.graph, ranges)
    for group in scheme.placement.groups:
        affine = from_range(*joint_range(group, dict(ranges)), Grid(7))
        scheme.activations.update(dict.fromkeys(group, affine))
    return drop(network.right, network.decide(scheme))


def per_tensor(network: Network) -> Result:
    """One scale for each weight instead of one for each output channel."""
    from secateur.quantization.weights import WeightRule

    rules = {"": WeightRule(per_channel=False)}
    scheme = make_scheme(network.graph, network.ranges(512, 0), rules)
    return drop(network.right, network.decide(scheme))


def depthwise(network: Network) -> Result:
    """Milliseconds of a 3x3 depthwise int8 layer at 28x28, by width, FBGEMM and ONNX Runtime."""
    torch.set_num_threads(1)
    return {str(width): _depthwise(width) for width in WIDTHS}


def _depthwise(width: int) -> Result:
    image = np.random.default_rng(0).integers(0, 256, (1, width, 28, 28), np.uint8)
    layer = Layer("conv", width, width, width, (28, 28), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    graph = layer_graph(layer, "int8", 1)
    runtimes = {"fbgemm": _Fbgemm(width), "onnxruntime": OnnxRuntime(graph.SerializeToString(), 1)}
    turns = latencies(runtimes, image, 5, 60)
    return {name: float(samples.min()) for name, samples in turns.items()}


class _Fbgemm:
    """PyTorch's eager int8 depthwise convolution; quantization is not timed."""

    name, version = "fbgemm", torch.__version__

    def __init__(self, width: int) -> None:
        torch.backends.quantized.engine = "fbgemm"
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(width, 1, 3, 3, generator=generator)
        scales, zeros = torch.full((width,), 0.02), torch.zeros(width, dtype=torch.int64)
        packed = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self._layer = torch.ops.quantized.conv2d_prepack(
            packed, None, [1, 1], [1, 1], [1, 1], width
        )
        image = torch.randn(1, width, 28, 28, generator=generator)
        image = image.contiguous(memory_format=torch.channels_last)
        self._image = torch.quantize_per_tensor(image, 0.05, 64, torch.quint8)

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Run the layer on its own quantized image."""
        torch.ops.quantized.conv2d.new(self._image, self._layer, 0.1, 64)
        return images


def retraining(network: Network) -> Result:
    """Remove half of the channels, then three epochs: fine-tuned, rewound, re-initialized."""
    result = {}
    for how in RETRAIN:
        recipe, prune = network.pipeline.recipe, network.pipeline.recipe.prune
        changed = {"retrain": how, "epochs": RETRAIN_EPOCHS, "distill": 0.0}
        recipe = recipe.model_copy(update={"prune": prune.model_copy(update=changed)})
        arm = open_chain(
            recipe, network.pipeline.store, network.pipeline.data_root, torch.device("cpu")
        )
        right = correctness(arm.load_network("remove"), network.test, arm.prepare)
        result[how] = drop(network.right, right)
    return result


CELLS: dict[str, Callable[[Network], Result]] = {
    "test-time flips": test_time_flips,
    "unshuffled split": unshuffled_split,
    "one batch of 50": one_batch,
    "seven-bit activations": seven_bits,
    "per-tensor weights": per_tensor,
    "depthwise widths": depthwise,
    "retraining": retraining,
}


def measure(options: argparse.Namespace) -> None:
    """Measure missing cells of one recipe."""
    recipe = load_recipe(options.recipe, options.set)
    path, network = options.out / "measured.jsonl", None
    for name in options.cells or CELLS:
        cell = {"recipe": options.recipe, "recipe_id": recipe.id, "cell": name}
        if is_there(path, cell):
            continue
        store = Store(options.runs / "stages", wait=True)
        network = network or Network(open_chain(recipe, store, options.data, torch.device("cpu")))
        about = {
            "geometry": recipe.geometry,
            "dataset": recipe.data.name,
            "seed": recipe.seed,
            "reference_percent": 100 * float(network.right.mean()),
        }
        append(path, cell | about | {"found": CELLS[name](network)}, ())


HEAD = """# Causes of differing results

Made by `python -m benchmarks differences report --out results/differences` from `measured.jsonl`
beside it, which `python -m benchmarks differences measure RECIPE --data DIR --out
results/differences` appends. One section for each trained network; each line changes one thing.
Points lost are relative to the float reference on the same test images, with Agresti and Min's 95 %
interval; negative values are gains. [docs/differences.md](../../docs/differences.md) discusses the
causes.
"""


def rows_of(name: str, result: Result) -> list[list[str]]:
    """Rows of the table for one cell: change, top-1, points lost."""
    if name == "unshuffled split":
        counts = result["images_of_each_class"]
        text = f"{min(counts):,} to {max(counts):,} images a class, {result['even']:,.0f} if even"
        return [["first fifth for validation, unshuffled", "–", text]]
    if name == "depthwise widths":
        return [
            [f"depthwise 3x3, int8, {width} channels", "–", ", ".join(
                f"{engine} {significant(ms)} ms" for engine, ms in samples.items())]
            for width, samples in result.items()
        ]  # fmt: skip
    if name == "one batch of 50":
        each = [[f"int8, calibrated on 50 images, draw {i + 1}", *accuracy(f)]
                for i, f in enumerate(result["50"])]  # fmt: skip
        return [["int8, calibrated on 512 images", *accuracy(result["512"])], *each]
    if name == "retraining":
        return [[f"half the channels, {RETRAIN_EPOCHS} epochs, {how}", *accuracy(f)]
                for how, f in result.items()]  # fmt: skip
    titles = {
        "test-time flips": f"random flips at test time (first of {DRAWS} draws)",
        "seven-bit activations": "int8 with seven-bit activations",
        "per-tensor weights": "int8 with one scale a weight tensor",
    }
    lines = [[titles[name], *accuracy(result)]]
    if "draws" in result:
        lowest, highest = min(result["draws"]), max(result["draws"])
        lines.append(["... all draws", f"{fixed(lowest)} to {fixed(highest)}", "–"])
    return lines


def accuracy(result: Result) -> list[str]:
    """Top-1 and points lost."""
    drop_points, low, high = result["drop_points"]
    top1 = result["top1_percent"][0]
    return [fixed(top1), f"{signed(drop_points)} [{signed(low)}, {signed(high)}]"]


def report(options: argparse.Namespace) -> None:
    """Write the table."""
    records = read(options.out / "measured.jsonl")
    lines = [HEAD]
    for recipe in dict.fromkeys(record["recipe"] for record in records):
        selected = [record for record in records if record["recipe"] == recipe]
        first = selected[0]
        lines += [f"## `{recipe}`, {first['geometry']}, seed {first['seed']}", ""]
        rows = [["float reference", fixed(first["reference_percent"]), "–"]]
        for record in selected:
            rows += rows_of(record["cell"], record["found"])
        lines += [*table(["What is changed", "Top-1, %", "Points lost, or else"], rows), ""]
        versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
        commits = ", ".join(sorted({record["commit"] for record in selected}))
        lines += [f"{first['processor']}; {versions}; commit {commits}.", ""]
    (options.out / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Measure, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure", help=measure.__doc__)
    measuring.add_argument("recipe")
    measuring.add_argument("--set", action="append", metavar="KEY=VALUE")
    measuring.add_argument("--data", type=Path)
    measuring.add_argument("--runs", type=Path, default=Path("runs"))
    measuring.add_argument("--cells", nargs="+", choices=CELLS)
    measuring.set_defaults(run=measure)
    reporting = commands.add_parser("report", help=report.__doc__)
    reporting.set_defaults(run=report)
    for command in (measuring, reporting):
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.run(options)
