"""AlexNet in int8 on each of PyTorch's quantized engines, compared with float.

Run: python -m benchmarks alexnet_engines measure
     python -m benchmarks alexnet_engines report
Writes results/differences/alexnet_engines.jsonl and ALEXNET_ENGINES.md. In the published report,
int8 AlexNet is 1.6 times slower than float. Weights are random, which does not affect latency.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common.isolation import apart
from benchmarks.common.markdown import table
from benchmarks.common.records import append, is_there, read
from secateur.benchmarking.timing import latencies
from secateur.models.build import build_network
from secateur.recipe import Network
from secateur.report.numbers import significant

FOLDER = Path(__file__).parent.parent / "results" / "differences"
ENGINES = ("fbgemm", "x86", "onednn", "qnnpack")
SIDES, THREADS, BATCHES = (64, 224), (1, 2), (1, 32)
WARMUP, REPEATS = 2, 12
SCALE, ZERO = 0.05, 64  # of every activation; 8 bits per tensor

Step = Callable[[Tensor], Tensor]


class Eager:
    """AlexNet as a list of steps in eager PyTorch."""

    version = torch.__version__

    def __init__(self, name: str, steps: list[Step]) -> None:
        self.name, self._steps = name, steps

    @torch.inference_mode()
    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return scores of a batch."""
        values = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        for step in self._steps:
            values = step(values)
        return values.numpy()


def static_steps(network: nn.Module, engine: str) -> list[Step]:
    """Every layer in int8, ReLU fused, activations quantized once; as torch.ao's eager route."""
    torch.backends.quantized.engine = engine
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.MaxPool2d)]
    steps: list[Step] = [lambda x: torch.quantize_per_tensor(x, SCALE, ZERO, torch.quint8)]
    last = layers[-1]
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            steps.append(lambda x: F.max_pool2d(x, 3, 2))
        elif isinstance(layer, nn.Conv2d):
            packed = torch.ops.quantized.conv2d_prepack(
                _integers(layer.weight), layer.bias, layer.stride, layer.padding, [1, 1], 1
            )
            steps.append(lambda x, p=packed: torch.ops.quantized.conv2d_relu.new(x, p, SCALE, ZERO))
        else:
            if layer.in_features == 256 * 36:
                steps.append(lambda x: F.adaptive_avg_pool2d(x, 6).flatten(1))
            packed = torch.ops.quantized.linear_prepack(_integers(layer.weight), layer.bias)
            run = torch.ops.quantized.linear if layer is last else torch.ops.quantized.linear_relu
            steps.append(lambda x, p=packed, f=run: f(x, p, SCALE, ZERO))
    return [*steps, torch.dequantize]


def dynamic_steps(network: nn.Module, engine: str) -> list[Step]:
    """Linear layers in int8 with ranges found at run time, convolutions in float."""
    torch.backends.quantized.engine = engine
    steps: list[Step] = [network.features, lambda x: F.adaptive_avg_pool2d(x, 6).flatten(1)]  # type: ignore[list-item]
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    for layer in linear:
        packed = torch.ops.quantized.linear_prepack(_integers(layer.weight), layer.bias)
        steps.append(lambda x, p=packed: torch.ops.quantized.linear_dynamic(x, p, True))
        if layer is not linear[-1]:
            steps.append(F.relu)
    return steps


def _integers(weight: Tensor) -> Tensor:
    """Weights in int8, one scale for each output channel."""
    scales = weight.detach().abs().flatten(1).amax(1) / 127
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    return torch.quantize_per_channel(weight.detach(), scales, zeros, 0, torch.qint8)


def times(side: int, threads: int, batch: int, engine: str) -> dict[str, Any]:
    """Milliseconds of float, static and dynamic AlexNet on one engine, in turns."""
    torch.set_num_threads(threads)
    config = Network(name="alexnet", resolution=side)
    network = build_network(config, 3, 10).eval().to(memory_format=torch.channels_last)
    images = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)
    arms = {
        "float": Eager("float", [network]),
        "static": Eager(engine, static_steps(network, engine)),
        "dynamic": Eager(engine, dynamic_steps(network, engine)),
    }
    samples = latencies(arms, images, WARMUP, REPEATS)
    return {name: [round(float(ms), 4) for ms in values] for name, values in samples.items()}


def measure() -> None:
    """Measure missing records, each engine in a separate process."""
    path = FOLDER / "alexnet_engines.jsonl"
    for side in SIDES:
        for threads in THREADS:
            for batch in BATCHES:
                for engine in ENGINES:
                    cell = {"side": side, "threads": threads, "batch": batch, "engine": engine}
                    if not is_there(path, cell):
                        append(path, cell | apart(times, side, threads, batch, engine), ())


def report() -> str:
    """The page: a row for each setting and engine, by medians."""
    rows = []
    for record in read(FOLDER / "alexnet_engines.jsonl"):
        setting = [str(record[key]) for key in ("side", "threads", "batch", "engine")]
        if "error" in record:
            rows.append([*setting, record["error"], "", "", "", ""])
            continue
        median = {arm: float(np.median(record[arm])) for arm in ("float", "static", "dynamic")}
        ratios = [significant(median[arm] / median["float"]) for arm in ("static", "dynamic")]
        rows.append([*setting, *(significant(value) for value in median.values()), *ratios])
    head = ["Pixels", "Threads", "Batch", "Engine", "Float, ms", "Static int8, ms",
            "Dynamic int8, ms", "Static / float", "Dynamic / float"]  # fmt: skip
    return "\n".join(table(head, rows))


PAGE = """# AlexNet in int8 on PyTorch's engines

Written by `python -m benchmarks alexnet_engines report` from alexnet_engines.jsonl. Medians of
{repeats} turns, eager PyTorch, random weights. A ratio above 1 is slower than float in the same
process.

{table}
"""


def main(arguments: list[str]) -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("measure", "report"))
    if parser.parse_args(arguments).command == "measure":
        measure()
        return
    page = PAGE.format(repeats=REPEATS, table=report())
    (FOLDER / "ALEXNET_ENGINES.md").write_text(page, encoding="utf-8")
