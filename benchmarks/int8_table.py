"""Our int8 beside fp32 and the int8 of others: latency, accuracy, and the tables of both.

Run: python benchmarks/int8_table.py time --out results/int8/latency.jsonl
     python benchmarks/int8_table.py accuracy RECIPE --data DIR --out results/int8/accuracy.jsonl
     python benchmarks/int8_table.py report --out results/int8
A record that is there is not made again without --again. Latency: all rows of a network take turns
in one run, one record for each network; weights do not matter for it and are random. Accuracy: one
record for each row, of the recipe's reference network, trained first or found under --runs. Report
reads both files in its folder and writes README.md beside them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import json_lines
import numpy as np
import numpy.typing as npt
import onnx
import torch
from apart import apart, silent
from int8_peers import FLOAT, PEERS, Array, OpenVino, Row
from json_lines import Record, append, is_there, pack, read
from markdown import aim_text, drop_text, in_points, made_with, ratio_text, table
from torch import nn

from secateur import data, recipe
from secateur.benchmarking.timing import latencies
from secateur.models.build import build_network
from secateur.onnx_ir.export import export_onnx
from secateur.onnx_ir.model import read_model, write_model
from secateur.onnx_ir.shuffles import straighten
from secateur.pipeline import open_chain
from secateur.quantization.qdq import write_qdq
from secateur.quantization.quantize import quantize
from secateur.recipe import load_recipe
from secateur.report.numbers import NONE, fixed, probability, size, times
from secateur.runtimes import OnnxRuntime
from secateur.statistics import (
    Interval,
    mcnemar,
    paired_drop,
    proportion,
    ratio_of_medians,
    spread,
)
from secateur.store import Store

WARMUP = 20
NETWORKS = ("mobilenet_v2", "shufflenet_v2_x1_0", "alexnet")
FASTER = {"mobilenet_v2": 2.2, "shufflenet_v2_x1_0": 1.8, "alexnet": 3.5}
"""What is aimed at: how many times faster than fp32 on ONNX Runtime."""
DROP = {"mobilenet_v2": 0.2, "shufflenet_v2_x1_0": 0.2, "alexnet": 0.1}
"""What is aimed at: points of top-1 that may be lost, at most."""
BATCH = 50
PACKAGES = ("openvino", "nncf")


# ---- ours: the one place that knows how Secateur makes its int8 file


def make_ours(float_path: Path, images: Array, out: Path) -> None:
    """Export and quantize as ``secateur run`` does by default: shuffles folded, blocks whole."""
    straight = out.with_name("straight.onnx")
    write_model(straighten(read_model(float_path)), straight)
    done = quantize(straight, torch.from_numpy(images), recipe.Quantize())
    write_qdq(done.model, done.scheme, out)


def straightened(float_path: Path, images: Array, folder: Path) -> list[Path]:
    """The float file as ``secateur export`` writes it."""
    path = folder / "straight.onnx"
    write_model(straighten(read_model(float_path)), path)
    return [path]


def ours(given: Path | None, float_path: Path, images: Array, folder: Path) -> list[Path]:
    """Our file: the one given, or else a new one."""
    if given is not None:
        return [given]
    made = folder / "ours.onnx"
    make_ours(float_path, images, made)
    return [made]


def all_rows(given: Path | None = None) -> dict[str, Row]:
    """Every row in the tables' order; ``given`` is our int8 file, where there is one already."""
    make = partial(ours, given)
    mine = {
        "ours-onnxruntime": Row("**ours**, ONNX Runtime", "onnxruntime", make, OnnxRuntime),
        "ours-openvino": Row("**ours**, OpenVINO", "openvino", make, OpenVino),
    }
    shipped = Row("fp32, shuffles folded, ONNX Runtime", "onnxruntime", straightened, OnnxRuntime)
    return FLOAT | {"fp32-straight": shipped} | mine | PEERS


# ---- latency


def untrained(name: str, side: int) -> nn.Module:
    """A network of random weights whose batch-norms have seen noise."""
    said = recipe.Network.model_validate({"name": name, "resolution": side})
    model = build_network(said, 3, 10, 0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(4):
            model.train()(torch.randn(8, 3, side, side))
    return model.eval()


def make_and_try(key: str, float_path: Path, images: Array, folder: Path, threads: int) -> Record:
    """Make a row's files and run one image, so that what crashes does it here."""
    row = all_rows()[key]
    with silent():
        files = row.make(float_path, images, folder)
        row.open(files[0], threads).run(images[:1])
    return {"files": files, "bytes": sum(file.stat().st_size for file in files)}


def time_network(name: str, said: argparse.Namespace) -> dict[str, Record]:
    """By row, its bytes and samples or its error."""
    side, rows = said.resolution, all_rows()
    drawn = np.random.default_rng(0).standard_normal((said.calibration, 3, side, side))
    images = drawn.astype(np.float32)
    with tempfile.TemporaryDirectory() as root:
        float_path = Path(root) / "float.onnx"
        export_onnx(untrained(name, side), (3, side, side), float_path, {}, straight=False)
        found: dict[str, Record] = {}
        for key in rows:
            folder = Path(root) / key
            folder.mkdir()
            found[key] = apart(make_and_try, key, float_path, images, folder, said.threads)
        files = {key: made.pop("files")[0] for key, made in found.items() if "files" in made}
        runtimes = {key: rows[key].open(file, said.threads) for key, file in files.items()}
        for key, samples in latencies(runtimes, images[:1], WARMUP, said.repeats).items():
            found[key]["milliseconds"] = [round(float(sample), 3) for sample in samples]
    return found


def run_time(said: argparse.Namespace) -> None:
    """Time each network, one record each."""
    for name in said.networks:
        cell = {"network": name, "resolution": said.resolution, "threads": said.threads}
        if said.again is None and is_there(said.out, cell):
            continue
        found = {"calibration": said.calibration, "rows": time_network(name, said)}
        append(said.out, cell | found, PACKAGES)


# ---- accuracy


def load(
    float_path: Path, said: argparse.Namespace, train: bool
) -> tuple[data.Images, data.Preparation]:
    """Images as a float file's metadata wants them: test, or those to calibrate on."""
    proto = onnx.load(float_path, load_external_data=False)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    mean, std = tuple(json.loads(about["mean"])), tuple(json.loads(about["std"]))
    prepare = data.Preparation(mean, std, int(about["resolution"]))
    images = data.load(json.loads(about["name"]), said.data, train=train)
    if not train:
        return images.spread(said.images), prepare
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.take(order[: said.calibration]), prepare


def decide(key: str, said: argparse.Namespace) -> Record:
    """Make one row's files, and what they decide on every test image."""
    row = all_rows(said.ours)[key]
    chosen, prepare = load(said.float, said, train=True)
    test, _ = load(said.float, said, train=False)
    with tempfile.TemporaryDirectory() as folder, silent():
        calibration = next(data.batches(chosen, prepare, len(chosen)))
        files = row.make(said.float, calibration, Path(folder))
        runtime = row.open(files[0], said.threads)
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


def export_reference(said: argparse.Namespace, path: Path) -> str:
    """Write the recipe's trained network as a float file, shuffles kept; return its name."""
    chosen = load_recipe(said.recipe, said.set)
    pipeline = open_chain(chosen, Store(said.runs / "stages"), said.data, torch.device("cpu"))
    network = pipeline.load_network("train")
    export_onnx(network, pipeline.input_shape, path, pipeline.metadata, straight=False)
    return chosen.network.name


def run_accuracy(said: argparse.Namespace) -> None:
    """Run each row of one trained network on the test images, one record each."""
    with tempfile.TemporaryDirectory() as folder:
        said.float = Path(folder) / "float.onnx"
        network = export_reference(said, said.float)
        digest = hashlib.sha256(said.float.read_bytes()).hexdigest()[:12]
        for key in all_rows():
            cell = {"network": network, "float": digest, "calibration": said.calibration}
            cell |= {"images": said.images, "row": key}
            wanted = said.again is not None and (not said.again or key in said.again)
            if wanted or not is_there(said.out, cell):
                about = {"recipe": said.recipe, "sets": said.set or [], "threads": said.threads}
                append(said.out, cell | apart(decide, key, said) | about, PACKAGES)


# ---- report: numbers


def milliseconds(record: Record) -> dict[str, npt.NDArray[np.float64]]:
    """The samples of each row that ran."""
    rows = record["rows"].items()
    return {key: np.array(row["milliseconds"]) for key, row in rows if "milliseconds" in row}


def unpack(records: Mapping[str, Record]) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each row that ran is right, image by image."""
    return {
        key: json_lines.unpack(record["right"], record["test_images"])
        for key, record in records.items()
        if "right" in record
    }


def decided(record: Record) -> npt.NDArray[np.uint8]:
    """The class that a row gives each image."""
    return np.frombuffer(zlib.decompress(base64.b64decode(record["classes"])), np.uint8)


# ---- report: text


def errors(rows: Mapping[str, Row], found: Mapping[str, Record], columns: int) -> list[list[str]]:
    """A line of a table for each row that did not run."""
    failed = [(rows[key].title, made["error"]) for key, made in found.items() if "error" in made]
    blank = [NONE] * (columns - 2)
    return [[title, *blank, "failed: " + said.replace("|", "/")] for title, said in failed]


def latency_table(record: Record) -> Iterator[str]:
    """A row for each way to run one network."""
    rows, samples = all_rows(), milliseconds(record)
    body = []
    for key, spent in samples.items():
        typical, engine = spread(spent), rows[key].engine
        ratios = {
            base: ratio_of_medians(samples[f"fp32-{base}"], spent)
            for base in dict.fromkeys((engine, "onnxruntime"))
            if f"fp32-{base}" in samples and key != f"fp32-{base}"
        }
        shown = [ratio_text(ratios[b]) if b in ratios else NONE for b in (engine, "onnxruntime")]
        aim, aimed = NONE, FASTER[record["network"]]
        if engine in ratios and engine == "onnxruntime" and not key.startswith("fp32"):
            value = ratios[engine].value
            aim = f"{fixed(aimed, 1)}×: {aim_text(value >= aimed, times(aimed - value, 2))}"
        took = [fixed(typical.value, 2), f"{fixed(typical.low, 2)} to {fixed(typical.high, 2)}"]
        weight = size(record["rows"][key]["bytes"])
        body.append([rows[key].title, weight, *took, *shown, aim])
    header = ["Row", "Files", "Median, ms", "p10 to p90", "fp32 of its runtime / it"]
    header += ["fp32 ONNX Runtime / it", "Aim"]
    yield from table(header, body + errors(rows, record["rows"], len(header)))


def accuracy_table(network: str, records: Mapping[str, Record]) -> Iterator[str]:
    """A row for each way to run one trained file."""
    rows, right = all_rows(), unpack(records)
    base = right.get("fp32-onnxruntime")
    body = []
    for key, correct in right.items():
        found = proportion(int(correct.sum()), correct.size)
        shown = [
            f"{fixed(100 * found.value)} [{fixed(100 * found.low)}, {fixed(100 * found.high)}]"
        ]
        if base is None or key == "fp32-onnxruntime":
            shown += [NONE] * 4
        else:
            drop = in_points(paired_drop(base, correct))
            same = decided(records[key]) == decided(records["fp32-onnxruntime"])
            shown += [drop_text(drop), probability(mcnemar(base, correct)).removeprefix("= ")]
            shown += [f"{fixed(100 * same.mean())} %"]
            shown += [NONE if key.startswith("fp32") else drop_aim(network, drop)]
        body.append([rows[key].title, size(records[key]["bytes"]), *shown])
    header = ["Row", "Files", "Top-1, %", "Drop, points", "McNemar p", "Same class", "Aim"]
    yield from table(header, body + errors(rows, records, len(header)))


def drop_aim(network: str, drop: Interval) -> str:
    """Whether so small a drop was aimed at."""
    allowed = DROP[network]
    reached = aim_text(drop.value <= allowed + 1e-9, fixed(drop.value - allowed))
    return f"{fixed(allowed, 1)}: {reached}"


def faster_verdicts(record: Record) -> Iterator[str]:
    """Whether ours is as fast as the peers, or by how much not."""
    samples = milliseconds(record)
    for said, mine, theirs in pairs(samples, lambda key: float(np.median(samples[key]))):
        found = ratio_of_medians(samples[theirs], samples[mine])
        slower = f"slower by {100 / found.value - 100:.1f} %"
        how = "at least as fast" if found.value >= 1 else slower
        shown = "" if not found.low <= 1 <= found.high else ", no difference shown"
        yield f"- {said}: {how}{shown} (theirs / ours {ratio_text(found)})."


def accuracy_verdicts(records: Mapping[str, Record]) -> Iterator[str]:
    """Whether ours is as accurate as the peers, or by how much not."""
    right = unpack(records)
    for said, mine, theirs in pairs(right, lambda key: -float(right[key].mean())):
        found = in_points(paired_drop(right[theirs], right[mine]))
        worse = f"less accurate by {fixed(found.value)} points"
        how = "at least as accurate" if found.value <= 0 else worse
        shown = "" if not found.low <= 0 <= found.high else ", no difference shown"
        yield f"- {said}: {how}{shown} (theirs minus ours {drop_text(found)} points)."


def pairs(there: Mapping[str, Any], cost: Callable[[str], float]) -> Iterator[tuple[str, str, str]]:
    """Which row of ours meets which peer, said and by key: each runtime, then the best of each."""
    rows = all_rows()
    couples = [("ours-onnxruntime", "quantize_static"), ("ours-openvino", "nncf")]
    for mine, theirs in couples:
        if {mine, theirs} <= there.keys():
            yield f"{rows[mine].title} against {rows[theirs].title}", mine, theirs
    sides = [[key for key in side if key in there] for side in zip(*couples, strict=True)]
    if all(sides):
        mine, theirs = (min(side, key=cost) for side in sides)
        said = f"the better of ours ({rows[mine].title}) against the better peer"
        yield f"{said} ({rows[theirs].title})", mine, theirs


HEAD = """# int8 beside fp32, and beside the int8 of others

Made by `python benchmarks/int8_table.py report --out results/int8` from the records beside it,
which these commands append:

    python benchmarks/int8_table.py time --out results/int8/latency.jsonl
    python benchmarks/int8_table.py accuracy RECIPE --data DIR --out results/int8/accuracy.jsonl

The float file is as PyTorch exports it, batch-norms folded, channel shuffles kept; ours is made
from it as `secateur run` does: shuffles folded into the weights, depthwise layers padded to whole
blocks, weights free of saturation. Peers get the same float file and the same
calibration images. `quantize_static` is ONNX Runtime's
own, after its preprocessing, opened with default session options; its second row has what its
manual advises on AVX2 without VNNI. NNCF quantizes the OpenVINO model, on all calibration images.
OpenVINO runs in fp32 or int8 arithmetic, tuned for latency, its batch fixed when it compiles.
Files are what the row opens. Every interval is at 95 %.
"""

LATENCY = """## Latency

One image, random weights (time does not depend on them), batch-norms that have seen noise,
calibrated on noise. The rows of one network take turns in one process, so that slow moments of the
machine are shared; each turn runs the image twice and counts the second, because OpenVINO's threads
spin for a millisecond into the next turn. Ratios are of medians, above 1 where int8 is faster,
with a bootstrap interval over whole turns. The aim is on ONNX Runtime.
"""

ACCURACY = """## Accuracy

Top-1 with Wilson's interval; the drop is fp32 on ONNX Runtime minus the row, on the same images,
with Agresti and Min's interval and McNemar's exact p; *same class* counts images on which a row
agrees with fp32 on ONNX Runtime.
"""


def latency_section(records: list[Record]) -> Iterator[str]:
    """Everything about time."""
    newest = {(r["network"], r["resolution"], r["threads"]): r for r in records}
    for (network, side, threads), record in newest.items():
        n = max((len(spent) for spent in milliseconds(record).values()), default=0)
        said = f"{side}x{side}x3, batch 1, {threads} threads, n = {n} turns a row"
        yield from (f"### {network}", "", f"{said}, after {WARMUP} that do not count.", "")
        yield from (*latency_table(record), "", *faster_verdicts(record), "")
        yield from (made_with([record]), "")


def accuracy_section(records: list[Record]) -> Iterator[str]:
    """Everything about accuracy."""
    files: dict[tuple[str, str, int, int], dict[str, Record]] = {}
    for r in records:
        cell = (r["network"], r["float"], r["calibration"], r["images"])
        files.setdefault(cell, {})[r["row"]] = r
    for (network, digest, calibration, _), unordered in files.items():
        found = {key: unordered[key] for key in all_rows() if key in unordered}
        ran = [record for record in found.values() if "right" in record]
        said = next(iter(found.values()))
        changes = "".join(f" `--set {change}`" for change in said["sets"])
        yield from (f"### {network}, `{said['recipe']}`{changes}, float file {digest}", "")
        if ran:
            side, n = ran[0]["resolution"], ran[0]["test_images"]
            yield f"{side}x{side}, n = {n:,} test images, {calibration} images to calibrate on."
            yield ""
        yield from (*accuracy_table(network, found), "", *accuracy_verdicts(found), "")
        yield from (made_with(list(found.values())), "")


def run_report(said: argparse.Namespace) -> None:
    """Write the tables."""
    lines = [HEAD]
    sections = (
        ("latency.jsonl", LATENCY, latency_section),
        ("accuracy.jsonl", ACCURACY, accuracy_section),
    )
    for name, text, section in sections:
        records = read(said.out / name)
        if records:
            lines += [text, *section(records)]
    (said.out / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    timing = commands.add_parser("time", help=run_time.__doc__)
    timing.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    timing.add_argument("--repeats", type=int, default=200)
    timing.add_argument("--resolution", type=int, default=224)
    timing.add_argument("--calibration", type=int, default=8, help="noise images")
    timing.add_argument("--again", action="store_const", const=True, help="even if it is there")
    timing.set_defaults(run=run_time)
    judging = commands.add_parser("accuracy", help=run_accuracy.__doc__)
    judging.add_argument("recipe", help="whose reference network is quantized")
    judging.add_argument("--set", action="append", metavar="KEY=VALUE", help="changes to it")
    judging.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are")
    judging.add_argument("--data", type=Path, help="folder of the data set")
    judging.add_argument("--calibration", type=int, default=512, help="training images")
    judging.add_argument("--images", type=int, default=0, help="test images; 0 for all")
    judging.add_argument("--ours", type=Path, help="our int8 file, instead of making one")
    judging.add_argument("--again", nargs="*", metavar="ROW", help="these rows, or all")
    judging.set_defaults(run=run_accuracy)
    reporting = commands.add_parser("report", help=run_report.__doc__)
    reporting.set_defaults(run=run_report)
    for command in (timing, judging):
        command.add_argument("--threads", type=int, default=2)
    for command in (timing, judging, reporting):
        command.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Do what is asked."""
    said = arguments()
    said.run(said)


if __name__ == "__main__":
    main()
