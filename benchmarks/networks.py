"""Halves the networks of torchvision and timm by Secateur and by Torch-Pruning, and checks them.

Run: python -m benchmarks networks results/networks.jsonl docs/networks.md [NETWORK ...]

Each network runs in a process of its own, on one thread, with a time limit; one line of JSON is
appended for each, and recorded networks are skipped, so that an interrupted run can be resumed. The
page is written at the end, and after every tenth network.

Half of the channels of each group are removed at random. Weights are random; norms and biases are
random too, so that a wrong index changes outputs.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.common.records import read
from benchmarks.networks_report import page
from secateur import environment
from secateur.benchmarking.cost import parameters
from secateur.pruning.costs import Costs
from secateur.pruning.planner import plan_channels
from secateur.recipe import Removal

LIST = Path(__file__).with_suffix(".txt")
SECONDS = 90
"""Processor time that one network may take, in each of the two tools."""

GIGABYTES = 12
"""Memory that one network may take."""


def listed() -> dict[str, str]:
    """Every network of the list, with its library."""
    lines = (line.split() for line in LIST.read_text().splitlines() if not line.startswith("#"))
    return {name if line[0] == "torchvision" else f"timm {name}": line[0]
            for line in lines for name in line[1:]}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and two images of its input size."""
    torch.manual_seed(0)
    if name.startswith("timm "):
        import timm

        network = timm.create_model(name.removeprefix("timm "))
        size = network.default_cfg["input_size"]
    else:
        import torchvision

        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(name, **more)
        size = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 1.5)
        for parameter in network.parameters():
            if parameter.numel() > 1 and float(parameter.std()) == 0:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return network.eval(), torch.randn(2, *size)


def _difference(expected: Any, actual: Any) -> float:
    """Largest difference of the first outputs, over the largest output."""
    first, second = (each if isinstance(each, Tensor) else next(iter(each)) for each in
                     (expected, actual))  # fmt: skip
    if first.shape != second.shape:
        raise ValueError(f"output of shape {tuple(second.shape)}, expected {tuple(first.shape)}")
    return float((first - second).abs().max() / first.abs().max())


@torch.no_grad()
def by_secateur(name: str) -> dict[str, Any]:
    """Plan, remove, and compare with the masked network in float64."""
    network, images = build(name)
    options = Removal(importance="random", round_to=1, linear="neurons", grouped="width")
    start = time.process_time()
    plan, prunable = plan_channels(network, images[:1], options, 0.5)
    seconds = time.process_time() - start
    costs = Costs(network, prunable, "macs")
    removed, masked = secateur.remove(network, plan), secateur.apply_masks(network, plan)
    reasons: dict[str, list[str]] = {}
    for layer in prunable.protected:
        reasons.setdefault(layer.reason, []).append(layer.name)
    record = {
        "size": images.shape[-1],
        "parameters": [parameters(network), parameters(removed)],
        "macs": [costs.full, costs.of(plan)],
        "groups": len(prunable.groups),
        "protected": {reason: [len(names), names[0]] for reason, names in reasons.items()},
        "seconds": round(seconds, 2),
    }
    doubles = images.double()
    return record | {"error": _difference(masked.double()(doubles), removed.double()(doubles))}


@torch.no_grad()
def by_torch_pruning(name: str) -> dict[str, Any]:
    """Prune half by Torch-Pruning as in its guide, except the last layer."""
    import torch_pruning

    network, images = build(name)
    before, shape = parameters(network), network(images).shape
    outputs = {name: len(p) for name, p in network.named_parameters() if p.ndim > 1}
    last = [part for part in network.modules() if isinstance(part, nn.Linear)][-1:]
    heads = {
        part.qkv: part.num_heads
        for part in network.modules()
        if isinstance(getattr(part, "qkv", None), nn.Linear) and hasattr(part, "num_heads")
    }
    start = time.process_time()
    with torch.enable_grad():
        pruner = torch_pruning.pruner.BasePruner(
            network,
            images[:1],
            importance=torch_pruning.importance.RandomImportance(),
            pruning_ratio=0.5,
            ignored_layers=last,
            num_heads=heads,
        )
        pruner.step()
    for part in network.modules():
        if getattr(part, "qkv", None) in heads and hasattr(part, "head_dim"):
            part.head_dim = part.qkv.out_features // (3 * part.num_heads)
            if hasattr(part, "attn_dim"):
                part.attn_dim = part.qkv.out_features // 3
    seconds = time.process_time() - start
    output = network(images)
    if output.shape != shape:
        raise ValueError(f"output of shape {tuple(output.shape)}, expected {tuple(shape)}")
    narrowest = min(len(p) / outputs[n] for n, p in network.named_parameters() if n in outputs)
    counts = [before, parameters(network)]
    return {"parameters": counts, "narrowest": round(narrowest, 3), "seconds": round(seconds, 2)}


def _child(work: Callable[[str], dict[str, Any]], name: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (GIGABYTES * 10**9,) * 2)
    warnings.simplefilter("ignore")
    try:
        pipe.send(work(name))
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        pipe.send({"failure": message[:300]})


def apart(work: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any]:
    """Run one task in a separate process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, name, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return {"failure": f"no result within {SECONDS} s of processor time, or out of memory"}
    finally:
        process.join()


def records(path: Path) -> dict[str, dict[str, Any]]:
    """Existing records by network."""
    return {record["network"]: record for record in read(path)}


def page_of(path: Path) -> str:
    """The page of all records, with the times of ``plan_time`` beside them."""
    return page(records(path), list(listed()), read(path.with_name("plan_time.jsonl")))


def main(arguments: list[str]) -> None:
    """Measure missing networks, and write the page."""
    path, table = Path(arguments[0]), Path(arguments[1])
    existing = records(path)
    missing = [name for name in arguments[2:] or listed() if name not in existing]
    if missing:
        import timm  # noqa: F401  once, before the processes
        import torch_pruning  # noqa: F401
        import torchvision  # noqa: F401

        small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        secateur.plan_removal(small, torch.zeros(1, 3, 8, 8), round_to=1)  # imports modules
    facts = {
        "processor": environment.processor(),
        "versions": environment.versions(),
        "commit": environment.commit(),
    }
    for count, name in enumerate(missing):
        record = {"network": name, "secateur": apart(by_secateur, name)}
        record |= {"torch_pruning": apart(by_torch_pruning, name), **facts}
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record)[:300], file=sys.stderr, flush=True)
        if count % 10 == 9:
            table.write_text(page_of(path))
    table.write_text(page_of(path))
