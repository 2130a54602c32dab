"""Halves all convolutional classifiers of torchvision, and checks the results.

Run: python -m benchmarks torchvision_zoo results/torchvision_zoo.jsonl [NETWORK ...]
     the same with --table > docs/torchvision.md
Appends one JSON line for each network, smallest first, and skips recorded ones.

Half of the channels of each group are removed at random. Plans and counts use the resolution of
torchvision's training; networks run at a smaller one, with random weights and biases, and with
batch-norm statistics of images, so that outputs depend on inputs: ``spread`` is the standard
deviation over images relative to the largest output.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn

import secateur
from secateur import environment
from secateur.benchmarking.cost import macs, parameters
from secateur.onnx_ir.export import export_onnx
from secateur.pruning.find import find_prunable
from secateur.pruning.tracing.probe import weightless
from secateur.runtimes import OnnxRuntime

FAMILIES = {
    "AlexNet": ["alexnet"],
    "DenseNet": [f"densenet{depth}" for depth in (121, 161, 169, 201)],
    "VGG": [f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")],
    "ResNet": [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)],
    "ResNeXt": ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"],
    "Wide ResNet": ["wide_resnet50_2", "wide_resnet101_2"],
    "Inception": ["googlenet", "inception_v3"],
    "SqueezeNet": ["squeezenet1_0", "squeezenet1_1"],
    "MobileNet": ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"],
    "MNASNet": [f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")],
    "ShuffleNetV2": [f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")],
    "EfficientNet": [f"efficientnet_{size}" for size in (*(f"b{n}" for n in range(8)),
                                                        *("v2_s", "v2_m", "v2_l"))],
    "RegNet": [f"regnet_{size}" for size in (
        *("x_400mf", "x_800mf", "x_1_6gf", "x_3_2gf", "x_8gf", "x_16gf", "x_32gf", "y_400mf"),
        *("y_800mf", "y_1_6gf", "y_3_2gf", "y_8gf", "y_16gf", "y_32gf", "y_128gf"))],
    "ConvNeXt": [f"convnext_{size}" for size in ("tiny", "small", "base", "large")],
}  # fmt: skip
NETWORKS = [name for family in FAMILIES.values() for name in family]

LARGE = 150_000_000
"""Parameters above which float64 runs on smaller images."""


def side_of(name: str) -> int:
    """Height and width that a network is planned and counted at."""
    return 299 if name == "inception_v3" else 224


def small_side_of(name: str) -> int:
    """Height and width that it is run at.

    Inception's auxiliary head needs 299 pixels in training. VGG pools to 7x7, which ONNX supports
    if the map is 7x7, a divisor or a multiple.
    """
    return 299 if name == "inception_v3" else 224 if name.startswith("vgg") else 64


def build(name: str) -> nn.Module:
    """A network with random weights, without torchvision's slow initialization."""
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return getattr(torchvision.models, name)(**more)


@torch.no_grad()
def enliven(network: nn.Module, images: Tensor) -> nn.Module:
    """Initialize weights that keep the variance, and set batch-norm statistics by ``images``."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            fan_in = layer.weight[0].numel()
            layer.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if layer.bias is not None:
                layer.bias.normal_(0, 0.1, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.weight.uniform_(0.5, 1.5, generator=generator)
            layer.bias.normal_(0, 0.3, generator=generator)
    network.train()(images)
    return network.eval()


def pictures(count: int, side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth random images of different contrast, always the same."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, 5, 5, generator=generator, dtype=torch.float64)
    contrast = torch.linspace(0.5, 2, count, dtype=torch.float64).view(-1, 1, 1, 1)
    return nn.functional.interpolate(contrast * coarse, (side, side), mode="bilinear").to(dtype)


@torch.no_grad()
def differ(masked: nn.Module, removed: nn.Module, images: Tensor) -> tuple[float, float]:
    """Largest difference of two networks and spread of outputs, over the largest output."""
    expected, result = masked(images), removed(images)
    scale = expected.abs().max()
    return float((expected - result).abs().max() / scale), float(expected.std(0).max() / scale)


def trains(network: nn.Module, images: Tensor) -> bool:
    """Whether a step of training gives every parameter a finite gradient."""
    outputs = network.train()(images)
    heads = outputs if isinstance(outputs, tuple) else (outputs,)
    labels = torch.arange(len(images))
    loss = sum(nn.functional.cross_entropy(head, labels) for head in heads if head is not None)
    assert isinstance(loss, Tensor)
    loss.backward()
    torch.optim.SGD(network.parameters(), 0.01).step()
    network.eval()
    finite = all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    network.zero_grad()
    return finite and bool(loss.isfinite())


def exports(network: nn.Module, images: Tensor) -> float:
    """Largest difference between a network and its ONNX file, over the largest output."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, tuple(images.shape[1:]), path, {})  # type: ignore[arg-type]
        result = torch.from_numpy(OnnxRuntime(path, 1).run(images.numpy()))
    with torch.no_grad():
        expected = network(images)
    return float((expected - result).abs().max() / expected.abs().max())


def measure(name: str) -> dict[str, Any]:
    """Measure one network."""
    torch.manual_seed(0)
    side, small = side_of(name), small_side_of(name)
    images = pictures(4, small)
    network = enliven(build(name), images)
    example = torch.zeros(1, 3, side, side)
    start = time.perf_counter()
    plan = secateur.plan_removal(network, example, 0.5, "random", "local", round_to=1)
    seconds = time.perf_counter() - start
    prunable = find_prunable(network, example)
    reasons: dict[str, list[str]] = {}
    for layer in prunable.protected:
        reasons.setdefault(layer.reason, []).append(layer.name)
    removed = secateur.remove(network, plan)
    record: dict[str, Any] = {
        "network": name,
        "side": side,
        "parameters": [parameters(network), parameters(removed)],
        "macs": [macs(weightless(each), (3, side, side)) for each in (network, removed)],
        "groups": len(prunable.groups),
        "protected": reasons,
        "unfollowed": list(prunable.unfollowed),
        "plan_seconds": round(seconds, 2),
        "run_side": small,
    }
    masked = secateur.apply_masks(network, plan)
    large = parameters(network) > LARGE
    del network
    record["error_float32"], record["spread"] = differ(masked, removed, images)
    record["onnx_error"] = exports(removed, images[:2])
    record["run_side_float64"] = 32 if large else small
    doubles = pictures(2, record["run_side_float64"], torch.float64)
    record["error_float64"], _ = differ(masked.double(), removed.double(), doubles)
    del masked
    record["trains"] = trains(removed.float(), images)
    return record


def run(path: Path, names: list[str]) -> None:
    """Measure networks that are not in the file."""
    lines = path.read_text().splitlines() if path.exists() else []
    existing = {json.loads(line)["network"] for line in lines}
    with torch.device("meta"):
        sizes = {name: _size(name) for name in names if name not in existing}
    for name in sorted(sizes, key=sizes.__getitem__):
        try:
            record = measure(name)
        except Exception as error:  # other networks continue
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        record |= {
            "torch_threads": torch.get_num_threads(),
            "processor": environment.processor(),
            "versions": environment.versions(),
            "commit": environment.commit(),
        }
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{name}: {record['error_float32']:.1e}", file=sys.stderr, flush=True)
        gc.collect()


def _size(name: str) -> int:
    """Parameters from torchvision's metadata: some networks cannot be built on the meta device."""
    weights = torchvision.models.get_model_weights(name)
    return next(iter(weights)).meta["num_params"]


def table(path: Path) -> str:
    """The page as Markdown."""
    records = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        records[record["network"]] = record
    rows = [_row(records[name]) for name in NETWORKS if name in records]
    missing = [name for name in NETWORKS if name not in records]
    worst32 = max(record["error_float32"] for record in records.values())
    worst64 = max(record["error_float64"] for record in records.values())
    worst_onnx = max(record["onnx_error"] for record in records.values())
    lines = [
        "# Every convolutional classifier of torchvision, halved",
        "",
        "Made by `python -m benchmarks torchvision_zoo results/torchvision_zoo.jsonl --table` from "
        "[the records](../results/torchvision_zoo.jsonl), which that script makes too.",
        "",
        "Half of each group's channels go, chosen at random, `round_to=1`. Counted at 224x224 "
        "(Inception: 299x299). *Error* is the largest difference between the network after the "
        "removal and the masked one, over the largest output. No network's operations were left "
        "unfollowed unless the last column says so; the layer that makes the classes always stays "
        "and is not listed.",
        "",
        f"{len(rows)} networks; largest error {worst32:.1e} in float32, {worst64:.1e} in float64, "
        f"and {worst_onnx:.1e} between a network and its ONNX file in ONNX Runtime. "
        f"{sum(record['trains'] for record in records.values())} of {len(rows)} train on: a step "
        "gives every parameter a finite gradient.",
        "",
        *([f"Not measured: {', '.join(missing)}.", ""] if missing else []),
        "| Network | Parameters | MACs | Groups | Error, float32 | float64 | ONNX | Plan, s | "
        "What must stay, and why |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *rows,
    ]
    return "\n".join(lines)


def _row(record: dict[str, Any]) -> str:
    output_reason = "they are the network's output"
    kinds: dict[str, list[str]] = {}
    for reason, layers in record["protected"].items():
        if reason != output_reason:
            kinds.setdefault(_short(reason), []).extend(layers)
    protected = [
        f"{len(layers)} layer{'s' * (len(layers) > 1)} (`{layers[0]}` ...): {reason}"
        for reason, layers in kinds.items()
    ]
    protected += [f"not followed: {operation}" for operation in record["unfollowed"]]
    return " | ".join(
        (
            f"| {record['network']}",
            *(
                f"{before:,} → {after:,}"
                for before, after in (record["parameters"], record["macs"])
            ),
            str(record["groups"]),
            *(f"{record[key]:.0e}" for key in ("error_float32", "error_float64", "onnx_error")),
            f"{record['plan_seconds']:.1f}",
            f"{'; '.join(protected) or 'nothing'} |",
        )
    )


def _short(reason: str) -> str:
    """A reason without the module's name, to merge equal reasons."""
    if "layer_norm" in reason:
        return "a layer norm mixes all of their channels"
    return reason


def main(arguments: list[str]) -> None:
    """Measure, or print the table."""
    path, *rest = (Path(arguments[0]), *arguments[1:])
    if rest == ["--table"]:
        print(table(path))
    else:
        torch.set_num_threads(1)
        run(path, rest or NETWORKS)
