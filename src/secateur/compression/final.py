"""The final test: the chosen file and the given network on the test images, which are read once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secateur.benchmarking.timing import latencies, memory_mb
from secateur.compression.candidate import Measured
from secateur.compression.candidate_stages import Stages, evaluate
from secateur.compression.onnx_network import is_file
from secateur.compression.verdict import Right, Verdict, decide
from secateur.console import progress
from secateur.data import Images, batches
from secateur.report.contents import Changes
from secateur.report.image_changes import image_changes
from secateur.report.layer_changes import layer_changes
from secateur.runtimes import Runtime, open_file
from secateur.runtimes.eager import Eager
from secateur.statistics import Interval, proportion, spread
from secateur.store import save_tensors, write_json, write_text
from secateur.training.evaluation import BATCH

ALIKE = 0.05
"""Relative difference below which two latencies are called equal in words."""

TIMED = {"eager": "given, eager PyTorch", "reference": "given, ONNX Runtime", "net": "result"}
"""Descriptions of the timed runtimes."""


@dataclass(frozen=True, eq=False)
class Final:
    """Measurements of the result and of the given network.

    Attributes:
        verdict: Result of the test.
        labels: Labels of the test images, shape (n,).
        scores: From ``reference`` and ``net`` to logits, float32 (n, classes).
        right: From ``reference`` and ``net`` to whether each image is classified correctly, shape
            (n,).
        samples_ms: From the keys of :data:`TIMED` to each timing of one image.
        bytes_before: Size of the given network's float file.
        bytes_after: Size of the resulting ONNX file.
        packed_bytes: Size of the packed file.
        fingerprint: Fingerprint of the test images.
        changes: Differences by layer and by image, and memory, for the report.
    """

    verdict: Verdict
    labels: npt.NDArray[np.int64]
    scores: dict[str, npt.NDArray[np.float32]]
    right: dict[str, Right]
    samples_ms: dict[str, npt.NDArray[np.float64]]
    bytes_before: int
    bytes_after: int
    packed_bytes: int
    fingerprint: str
    changes: Changes

    def accuracy(self, which: str) -> Interval:
        """Accuracy of ``reference`` or ``net`` on the test images."""
        right = self.right[which]
        return proportion(int(right.sum()), len(right))

    def latency(self, which: str) -> Interval:
        """Median ms of one image, with the 10th and 90th percentile."""
        return spread(self.samples_ms[which])

    @property
    def summary(self) -> str:
        """The reduction in size and latency, in one sentence."""
        times = {name: self.latency(name).value for name in self.samples_ms}
        smaller = self.bytes_before / self.packed_bytes
        names = {"eager": "eager PyTorch", "reference": "ONNX Runtime in float32"}
        faster = ", ".join(
            speed(times[key] / times["net"], name) for key, name in names.items() if key in times
        )
        return (
            f"{smaller:.1f} times smaller ({self.bytes_before / 1e3:,.1f} to "
            f"{self.packed_bytes / 1e3:,.1f} kB packed); {faster} ({times['net']:.3g} ms an image)"
        )


def speed(ratio: float, other: str) -> str:
    """Compare with another's latency in words.

    Args:
        ratio: The other's latency divided by that of the network.
        other: Name of the other.

    Example:
        >>> speed(2.5, "eager PyTorch"), speed(1.01, "eager PyTorch")
        ('2.5 times faster than eager PyTorch', 'as fast as eager PyTorch')
        >>> speed(0.5, "eager PyTorch")
        '2.0 times slower than eager PyTorch'
    """
    if abs(ratio - 1) < ALIKE:
        return f"as fast as {other}"
    return f"{max(ratio, 1 / ratio):.1f} times {'faster' if ratio > 1 else 'slower'} than {other}"


def measure_final(stages: Stages, chosen: Measured) -> Final:
    """Test the chosen candidate; only this function reads the test images."""
    assert chosen.folder is not None
    path = chosen.folder / "net.onnx"

    def make(folder: Path) -> None:
        _measure(stages, path, folder)

    key = {
        "candidate": chosen.folder.name,
        "repeats": 2 * stages.settings.bench.repeats,
    }
    stage = stages.store.stage("verdict", key, {"reference": stages.reference}, make)
    facts, stored = stage.json("verdict.json"), stage.tensors("scores.safetensors")
    scores = {name: stored[name].numpy() for name in ("reference", "net")}
    right = {name: stored[f"right/{name}"].numpy() for name in scores}
    return Final(
        decide(
            right["reference"], right["net"],
            stages.settings.goal.max_drop, len(stages.problem.classes),
        ),
        stored["labels"].numpy(),
        scores,
        right,
        {name: np.array(samples) for name, samples in facts["samples_ms"].items()},
        stages.reference_facts["onnx_bytes"],
        chosen.onnx_bytes,
        chosen.packed_bytes,
        facts["fingerprint"],
        Changes.model_validate(stage.json("changes.json")),
    )  # fmt: skip


def _measure(stages: Stages, path: Path, folder: Path) -> None:
    problem, bench = stages.problem, stages.settings.bench
    test = problem.test()
    runtimes: dict[str, Runtime] = {
        "reference": open_file(stages.reference_file, bench.threads, bench.runtime),
        "net": open_file(path, bench.threads, bench.runtime),
    }
    tensors = {"labels": test.labels.cpu()}
    with progress("test images", len(runtimes)) as tick:
        for name, runtime in runtimes.items():
            tensors[name] = torch.from_numpy(_scores(runtime, test, stages))
            right = tensors[name].argmax(1) == tensors["labels"]
            if problem.loop.evaluate is not None:
                right = torch.from_numpy(evaluate(runtime, test, problem, "test"))
            tensors[f"right/{name}"] = right
            tick.advance()
    image = next(batches(problem.validation, problem.prepare, 1))
    before = torch.get_num_threads()
    if not is_file(problem.network):
        runtimes["eager"] = Eager(copy.deepcopy(problem.network).cpu(), bench.threads)
    samples = latencies(runtimes, image, bench.warmup, 2 * bench.repeats)
    torch.set_num_threads(before)
    facts: dict[str, Any] = {
        "samples_ms": {name: values.round(5).tolist() for name, values in samples.items()},
        "fingerprint": test.fingerprint,
    }
    save_tensors(folder / "scores.safetensors", tensors)
    write_json(folder / "verdict.json", facts)
    files = {"reference": stages.reference_file, "net": path}
    changes = Changes(
        layers=layer_changes(stages.reference_file, path, bench.threads, bench.repeats),
        memory_mb=memory_mb(files, image, bench.threads, bench.runtime),
        images=image_changes(
            tensors["labels"].numpy(),
            tensors["reference"].numpy(),
            tensors["net"].numpy(),
            problem.classes,
            None if problem.loop.loader is not None else test.pixels,
        ),
    )
    write_text(folder / "changes.json", changes.model_dump_json())


def _scores(runtime: Runtime, test: Images, stages: Stages) -> npt.NDArray[np.float32]:
    parts = [runtime.run(batch) for batch in batches(test, stages.problem.prepare, BATCH)]
    return np.concatenate(parts)
