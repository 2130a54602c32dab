"""What packing comes to: bytes beside entropy and general compressors, accuracy, latency, decoding.

Run: python benchmarks/artifact_table.py measure RECIPE --data DIR --runs runs [--set KEY=VALUE ...]
     python benchmarks/artifact_table.py curve RECIPE --data DIR --runs runs [--set KEY=VALUE ...]
     python benchmarks/artifact_table.py report
Records go to results/artifact, one line each; the stages that they need are made, or found under
--runs. ``measure`` takes the recipe's chain (without its scan) to the packed file and measures
that; ``--control NAME=FILE`` runs another float file on the same test images. ``curve`` rounds the
pruned
network at many prices and packs each: bytes against what is lost on validation. ``report`` writes
README.md and curve.svg from the records. Needs zstandard, of the group ``peers``.
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

from secateur import environment
from secateur.artifact.container import read_sections
from secateur.artifact.packing import TAGS, pack, unpack
from secateur.artifact.stream import Writer
from secateur.artifact.tensors import Banks, code_tensor
from secateur.benchmark import latencies
from secateur.data import batches, load
from secateur.onnx_graph import read_model
from secateur.pipeline import Pipeline
from secateur.quantization.pricing import PRICES, scheme_by_price
from secateur.quantization.qdq import read_scheme, write_qdq
from secateur.quantization.quantize import quantize
from secateur.quantization.scheme import Scheme
from secateur.quantization.simulate import Simulated
from secateur.recipe import load_recipe
from secateur.report import numbers
from secateur.runtimes import OnnxRuntime
from secateur.statistics import Interval, mcnemar, paired_drop, proportion, spread
from secateur.store import Store

Record = dict[str, Any]
ROOT = Path(__file__).parent.parent
OUT = ROOT / "results" / "artifact"
STUDY = {"mobilenet_v2": 2.51e6, "shufflenet_v2_x1_0": 1.4e6, "alexnet": 54.6e6}
"""Bytes of the published study's dense int8 files (arXiv 2001.04850, Table 4)."""
AIMS = {
    "mobilenet_v2": (0.65e6, 0.40e6),
    "shufflenet_v2_x1_0": (0.40e6, 0.23e6),
    "alexnet": (4.4e6, 2.5e6),
}
"""What is aimed at with at most 0.3 points lost, and beyond."""
REPEATS = 200
DECODINGS = 5


def entropy_bytes(scheme: Scheme) -> float:
    """Order-0 entropy of the weights' integers, each tensor by its own histogram, which is free."""
    total = 0.0
    for layer in scheme.layers.values():
        counts = np.unique(layer.integers, return_counts=True)[1]
        total -= float(counts @ np.log2(counts / layer.integers.size))
    return total / 8


def coded_bytes(integers: list[npt.NDArray[np.int32]]) -> int:
    """The weights' integers alone, by our coder."""
    writer, banks = Writer(), Banks()
    for layer in integers:
        code_tensor(writer, banks, layer.astype(np.int8), np.dtype("i1"), layer.shape)
    return len(writer.to_bytes())


def measure(chain: Pipeline, controls: dict[str, Path]) -> Record:
    """Everything about the chain's packed file."""
    import zstandard  # of the group peers, and for this alone

    packed = chain.packed_file.read_bytes()
    onnx = unpack(packed).onnx
    assert onnx == chain.file("quantized").read_bytes()
    source = read_model(chain.quantize.folder / "float.onnx")
    scheme = read_scheme(source, chain.file("quantized"))
    right = {v: r.numpy() for v, r in chain.bench.tensors("right.safetensors").items()}
    integers = [layer.integers for layer in scheme.layers.values()]
    test = load(chain.recipe.data.name, chain.data_root, train=False)
    return {
        "kind": "file",
        "parameters": sum(p.numel() for p in chain.load_network(chain.train).parameters()),
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
        "chosen": chain.quantize.json("chosen.json").get("price"),
        "test_images": len(right["reference"]),
        "right": {variant: int(found.sum()) for variant, found in right.items()},
        "drop": against(right["reference"], right["quantized"]),
        "drop_from_pruned": against(right["pruned"], right["quantized"]),
        "controls": {name: control(chain, path, right, test) for name, path in controls.items()},
        # Of the quantized file, which the packed one decodes to, as asserted above.
        "parity": chain.bench.json("bench.json")["parity"],
        "latency_ms": timed(chain, onnx, test),
    }


def against(reference: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_]) -> Record:
    """Points lost, paired."""
    drop = [100 * bound for bound in paired_drop(reference, candidate)]
    return {"points": drop, "mcnemar_p": mcnemar(reference, candidate)}


def control(chain: Pipeline, path: Path, right: dict[str, Any], test: Any) -> Record:
    """Another float network on the same test images, and what the packed one loses against it."""
    runtime = OnnxRuntime(path, 2)
    decided = [runtime.run(batch).argmax(1) for batch in batches(test, chain.prepare, 250)]
    theirs = np.concatenate(decided) == test.labels.numpy()
    return {"right": int(theirs.sum()), "drop": against(theirs, right["quantized"])}


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


def timed(chain: Pipeline, onnx: bytes, test: Any) -> Record:
    """Median, p10 and p90 of one image: the float files and the one that was unpacked, in turns."""
    runtimes = {
        "reference": OnnxRuntime(chain.file("reference"), 2),
        "pruned": OnnxRuntime(chain.file("pruned"), 2),
        "packed": OnnxRuntime(onnx, 2),
    }
    image = next(batches(test, chain.prepare, 1))
    samples = latencies(runtimes, image, 20, REPEATS)
    return {name: list(spread(values)) for name, values in samples.items()}


def curve(chain: Pipeline, prices: tuple[float, ...]) -> Iterator[Record]:
    """The pruned network at each price: bytes, and what is lost on validation."""
    path = chain.export.folder / "pruned.onnx"
    training, validation = chain.parts
    config = chain.recipe.quantize.model_copy(update={"price": 0.0})
    generator = torch.Generator().manual_seed(chain.recipe.seed)
    chosen = torch.randperm(len(training), generator=generator)[: config.images]
    images = chain.prepare(training.take(chosen).pixels).contiguous()
    judge = chain._judge
    done = quantize(path, images, config, judge)
    truth = judge.right(Simulated(done.model))
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
            "loss": judge.loss(network),
            "validation_images": len(validation),
            "drop": [100 * bound for bound in paired_drop(truth, judge.right(network))],
        }


# ---- report


def read(kind: str) -> list[Record]:
    """The records of one kind; of the same cell the last one counts."""
    lines = (OUT / "measured.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[tuple[Any, ...], Record] = {}
    for record in map(json.loads, lines):
        if record["kind"] == kind:
            found[record["recipe_id"], record.get("price")] = record
    return list(found.values())


def report() -> None:
    """Write README.md and curve.svg."""
    files, prices = read("file"), read("price")
    text = (
        HEAD
        + files_table(files)
        + CODING
        + coding_table(files)
        + ACCURACY
        + accuracy_table(files)
        + SPEED
        + speed_table(files)
    )
    if prices:
        draw(prices)
        text += CURVE + curve_table(prices)
    if (OUT / "fuzz.json").exists():
        text += fuzzed(json.loads((OUT / "fuzz.json").read_text(encoding="utf-8")))
    text += "\n## Commands and surroundings\n\n" + "".join(made_by(record) for record in files)
    (OUT / "README.md").write_text(text, encoding="utf-8", newline="\n")
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


def readme(text: str) -> str:
    """Return the project's README with the table between the two marks made anew."""
    head, rest = text.split(BEGIN)
    rows = "".join(
        f"| {r['network']} | **{numbers.size(r['packed_bytes'])}** | "
        f"{numbers.times(4 * r['parameters'] / r['packed_bytes'])} | "
        f"{numbers.times(STUDY[r['network']] / r['packed_bytes'])} | "
        f"{accuracy(r['right']['reference'], r['test_images'])} | "
        f"{accuracy(r['right']['quantized'], r['test_images'])} | {drop(r['drop'])} | "
        f"{numbers.times(r['latency_ms']['reference'][0] / r['latency_ms']['packed'][0])} |\n"
        for r in read("file")
        if not r["epochs"]
    )
    return f"{head}{BEGIN}\n\n{SUMMARY}{rows}\n{END}{rest.split(END)[1]}"


BEGIN, END = "<!-- packed: made by benchmarks/artifact_table.py -->", "<!-- end of packed -->"
SUMMARY = """| Network | `net.sec` | smaller than float | than the study's int8 | Reference, % | Packed, % | Drop, points | Faster |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""  # noqa: E501 a table has long lines


HEAD = """# One small file

Made by `python benchmarks/artifact_table.py report` from `measured.jsonl` and `fuzz.json` beside
it.
FashionMNIST in full: 48,000 training, 12,000 validation, 10,000 test images; the price of a bit is
chosen on validation, the test images are opened once. Sizes are of the whole file, everything
included; MB = 10^6 bytes. *Trained on* are networks rounded at a higher price, and then trained as
quantized for two epochs.

AlexNet's row says little about AlexNet. Its reference is far from converged after five epochs, so
that eight epochs of retraining at half the widths end far above it; *from pruned float* is what
rounding and coding cost. And at 64x64 its last map is one pixel, which its pool repeats 36 times
for the first linear layer to read: exported, the layer reads it once, and 37 of the 57 million
weights are gone before anything is pruned. At 224x224, the published size, they are not redundant.

| Network | Packed | Study's dense int8 | Float reference | Aim, 0.3 points lost at most | Stretch |
| --- | ---: | ---: | ---: | --- | --- |
"""
CODING = """
## The same integers by other means

Order-0 entropy is of the weights' integers, each tensor by its own histogram, which a decoder would
have to be sent besides. Beside it the same integers by our coder, alone; and the whole file, which
holds all else too: scales, biases, graph, provenance. xz -9e and zstd -19 compress the QDQ file.

| Network | Weights | Zeros | Entropy | Ours | Ours, whole | QDQ file | xz -9e | zstd -19 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
ACCURACY = """
## What it cost

Top-1 on the 10,000 test images; a drop is paired on the same images, with its 95 % interval, and
McNemar's exact p. Parity: images on which the file, in ONNX Runtime, chooses the same class as its
simulation in PyTorch.

| Network | Reference, % | Packed, % | Drop | from pruned float | <= 0.3 at 95 % | Parity, % |
| --- | ---: | ---: | ---: | ---: | --- | ---: |
"""
SPEED = """
## Small and fast in one file

One image, two threads, ONNX Runtime, the three files in turns, n = 200 each; decoding on one core,
median of five.

| Network | Reference, ms | Pruned float, ms | Packed, ms | Faster | Decoding, s |
| --- | ---: | ---: | ---: | ---: | ---: |
"""
CURVE = """
## Bytes against loss

The pruned networks at one price of a bit after another, in nats a megabyte, on the validation
images; price 0 is plain int8, rounded to nearest. No training follows.

![Points lost on validation against the bytes of the file](curve.svg)

| Network | Price | Bytes | Cross-entropy, nats | Drop on validation, points |
| --- | ---: | ---: | ---: | ---: |
"""


def name_of(record: Record) -> str:
    return record["network"] + (", trained on" if record["epochs"] else "")


def files_table(files: list[Record]) -> str:
    rows = ""
    for record in files:
        network, size = record["network"], record["packed_bytes"]
        aim, stretch = AIMS[network]
        rows += (
            f"| {name_of(record)} | **{numbers.size(size)}** | {numbers.size(STUDY[network])}, "
            f"{numbers.times(STUDY[network] / size)} ours | "
            f"{numbers.size(4 * record['parameters'])}, "
            f"{numbers.times(4 * record['parameters'] / size)} ours | "
            f"{numbers.size(aim)}: {verdict(record, aim)} | "
            f"{numbers.size(stretch)}: {verdict(record, stretch)} |\n"
        )
    return rows


def verdict(record: Record, aim: float) -> str:
    """Whether bytes and points are within."""
    over, lost = record["packed_bytes"] - aim, record["drop"]["points"][0]
    if over > 0:
        return f"missed by {numbers.size(over)}"
    return "reached" if lost <= 0.3 else f"small enough, but {numbers.signed(lost)} points"


def coding_table(files: list[Record]) -> str:
    rows = ""
    for record in files:
        size = record["packed_bytes"]
        others = " | ".join(
            f"{numbers.size(record[key])}, {numbers.times(record[key] / size)}"
            for key in ("onnx_bytes", "xz_bytes", "zstd_bytes")
        )
        rows += (
            f"| {name_of(record)} | {numbers.count(record['weights'])} | "
            f"{numbers.percent(record['zeros'] / record['weights'])} | "
            f"{numbers.size(record['entropy_bytes'])} | "
            f"{numbers.size(record['weights_bytes'])} | {numbers.size(size)} | {others} |\n"
        )
    return rows


def accuracy_table(files: list[Record]) -> str:
    rows = ""
    for record in files:
        n = record["test_images"]
        high = record["drop"]["points"][2]
        parity = 100 * (1 - len(record["parity"]["differences"]) / record["parity"]["n"])
        rows += (
            f"| {name_of(record)} | {accuracy(record['right']['reference'], n)} | "
            f"{accuracy(record['right']['quantized'], n)} | {drop(record['drop'])} | "
            f"{drop(record['drop_from_pruned'])} | "
            f"{'yes' if high <= 0.3 else f'not shown: up to {numbers.signed(high)}'} | "
            f"{numbers.fixed(parity)} |\n"
        )
    for record in files:
        for name, found in record["controls"].items():
            rows += (
                f"\n{record['network']} against *{name}*: "
                f"{accuracy(found['right'], record['test_images'])} %; the packed file's drop from "
                f"it is {drop(found['drop'])}.\n"
            )
    return rows


def accuracy(right: int, n: int) -> str:
    value = Interval(*(100 * bound for bound in proportion(right, n)))
    return f"{numbers.fixed(value.value)} [{numbers.fixed(value.low)}, {numbers.fixed(value.high)}]"


def drop(found: Record) -> str:
    value, low, high = (numbers.signed(bound) for bound in found["points"])
    return f"{value} [{low}, {high}], p {numbers.probability(found['mcnemar_p'])}"


def speed_table(files: list[Record]) -> str:
    rows = ""
    for record in files:
        times = record["latency_ms"]
        cells = " | ".join(
            f"{numbers.significant(times[k][0])} ({numbers.significant(times[k][1])} to "
            f"{numbers.significant(times[k][2])})"
            for k in ("reference", "pruned", "packed")
        )
        rows += (
            f"| {name_of(record)} | {cells} | "
            f"{numbers.times(times['reference'][0] / times['packed'][0])} | "
            f"{numbers.significant(float(np.median(record['decode_seconds'])))} |\n"
        )
    return rows


def curve_table(prices: list[Record]) -> str:
    return "".join(
        f"| {r['network']} | {r['price']:g} | {numbers.count(r['packed_bytes'])} | "
        f"{numbers.fixed(r['loss'], 4)} | {numbers.signed(r['drop'][0])} "
        f"[{numbers.signed(r['drop'][1])}, {numbers.signed(r['drop'][2])}] |\n"
        for r in prices
    )


def draw(prices: list[Record]) -> None:
    """Points lost against bytes, a line for each network, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "secateur"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for number, network in enumerate(dict.fromkeys(r["network"] for r in prices)):
        ours = [r for r in prices if r["network"] == network and r["drop"][0] < 3]
        kilobytes = [r["packed_bytes"] / 1e3 for r in ours]
        low, middle, high = (np.array([r["drop"][i] for r in ours]) for i in (1, 0, 2))
        color, marker = f"C{number}", "osD"[number % 3]
        axes.plot(kilobytes, middle, f"-{marker}", color=color, label=network, markersize=4)
        axes.fill_between(kilobytes, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axhline(0.3, color="0.4", linewidth=0.8, linestyle="--")
    axes.annotate("0.3 points", (1, 0.3), (-4, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", color="0.4", fontsize=8)  # fmt: skip
    axes.set(xscale="log", xlabel="file, kB", ylabel="points lost on validation (95 %)")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis("{x:g}")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(OUT / "curve.svg", metadata={"Date": None})


def fuzzed(found: Record) -> str:
    rows = "".join(
        f"| {key} | {numbers.count(count)} |\n" for key, count in sorted(found["seen"].items())
    )
    return (
        "\n## Mutated files\n\n"
        f"`python tests/fuzz.py --files {found['files']} --out results/artifact/fuzz.json`: "
        f"{numbers.count(found['files'])} files, mutated from the outside in. None crashed, "
        "none gave a wrong network where the hash had to show it. The slowest took "
        f"{numbers.significant(found['slowest_seconds'])} s; no process grew by more than "
        f"{numbers.significant(found['largest_growth_mebibytes'])} MiB over all of its files. "
        f"{found['processor']}; commit {found['commit']}.\n\n"
        "| Damage: outcome | Files |\n| --- | ---: |\n" + rows
    )


def made_by(record: Record) -> str:
    sets = " ".join(f"--set {change}" for change in record["sets"])
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"- {name_of(record)}: `python benchmarks/artifact_table.py measure {record['recipe']} "
        f"--data DIR {sets}`. {record['geometry']}, seed {record['seed']}. "
        f"{record['processor']}; {versions}; commit {record['commit']}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("measure", "curve", "report"))
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--control", action="append", default=[], metavar="NAME=FILE")
    options = parser.parse_args()
    if options.command == "report":
        report()
        return
    recipe = load_recipe(options.recipe, options.set)
    chain = Pipeline(recipe, Store(options.runs / "stages"), options.data, torch.device("cpu"))
    about = {
        "recipe": options.recipe, "sets": options.set, "recipe_id": recipe.id,
        "network": recipe.network.name, "geometry": recipe.geometry, "seed": recipe.seed,
        "epochs": recipe.quantize.epochs, "processor": environment.processor(),
        "versions": environment.versions(), "commit": environment.commit(),
    }  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    if options.command == "measure":
        named = (given.partition("=") for given in options.control)
        found = iter([measure(chain, {name: Path(path) for name, _, path in named})])
    else:
        found = curve(chain, PRICES[2:15:2])
    with (OUT / "measured.jsonl").open("a", encoding="utf-8") as file:
        for record in found:
            file.write(json.dumps(record | about) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
