"""Compares importance criteria at equal multiply-accumulates and equal retraining.

Run: python -m benchmarks criteria --data DIR [--images N] [--records FILE] [--page FILE]
     python -m benchmarks criteria report

CIFAR-10 and the ResNet-8 of the package. For each of three seeds, a reference is trained on 20,000
images for eight epochs. Each cell removes channels once, by one criterion, until 35 % of the
multiply-accumulates remain, and trains the smaller network for two epochs at half the learning
rate. Random channels are the control. ``growing`` chooses as ``l2`` does, and spends one of its two
epochs before the removal, with a growing penalty on what is removed. Accuracy is measured on 10,000
other training images; the test images are not read. All cells take half an hour on one thread.

Cells are appended to results/criteria/cells.jsonl as they end; recorded cells are skipped, so that
an interrupted run can be resumed. The page is written beside them.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from secateur import environment, recipe
from secateur.benchmarking.cost import macs, parameters
from secateur.data import Preparation, load, normalization
from secateur.data.splits import draw
from secateur.models.small_resnet import small_resnet
from secateur.onnx_ir.export import export_onnx
from secateur.pruning.channels import Prunable, Scores
from secateur.pruning.masks import Masks, plan_masks
from secateur.pruning.planner import plan_channels, select_groups
from secateur.pruning.surgery import remove
from secateur.quantization.curvature import layer_outputs, output_curvature
from secateur.quantization.scheme import weighted_nodes
from secateur.quantization.simulate import Simulated
from secateur.training.cpu import keep_freed_memory
from secateur.training.evaluation import correctness, leave_gradients
from secateur.training.loop import train
from secateur.training.trainer import TrainStep

FOLDER = Path(__file__).parent.parent / "results" / "criteria"
CRITERIA = ("l2", "l1", "batch_norm", "taylor", "fpgm", "lamp", "curvature", "growing", "random")
SCOPES = ("local", "global")
SEEDS = (0, 1, 2)
LEFT = 0.35
EPOCHS, MORE = 8, 2
BATCH, RATE, SMOOTHING = 64, 0.1, 0.1
COMPARED = 10_000
"""Images on which networks are compared."""
PENALTY = 2.0
"""Weight decay of channels to be removed at the end of the epoch of growing regularization."""
GRADIENTS = 1000
"""Training images for gradients and curvatures."""
SHAPE = (3, 32, 32)
IMPORTANCE = {"curvature": "l2", "growing": "l2"}
"""From criteria that the planner lacks to the one that plans in their place."""
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One pruned network: its criterion, and the seed of all random numbers."""

    criterion: str
    scope: str
    seed: int


def cells() -> Iterator[Cell]:
    """All cells, seed by seed."""
    for seed, scope, criterion in product(SEEDS, SCOPES, CRITERIA):
        yield Cell(criterion, scope, seed)


class Reference:
    """The trained network of one seed, and its images."""

    def __init__(self, seed: int, data: Path, images: int) -> None:
        every = load("cifar10", data, train=True)
        order = draw(every.labels, images + COMPARED, 0)
        compared = draw(every.labels[order], COMPARED, 1)
        apart = torch.ones(len(order), dtype=torch.bool)
        apart[compared] = False
        self.training, self.compared = every.take(order[apart]), every.take(order[compared])
        mean, std = normalization(self.training, "dataset")
        self.prepare, self.seed = Preparation(mean, std, SHAPE[1]), seed
        torch.manual_seed(seed)
        self.network = self.train(small_resnet(10, SHAPE[0]), EPOCHS, RATE)

    def train(
        self, network: nn.Module, epochs: int, rate: float, step: TrainStep | None = None
    ) -> nn.Module:
        """Train a network."""
        config = recipe.Train(
            epochs=epochs, batch_size=BATCH, learning_rate=rate, label_smoothing=SMOOTHING,
            augment=recipe.Augment(flip=True, crop=4),
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            kept, _ = train(
                network.to(memory_format=torch.channels_last), self.training,
                self.compared.take(torch.arange(500)), self.prepare, config,
                seed=self.seed, checkpoint=Path(folder) / "checkpoint.safetensors",
                train_step=step,
            )  # fmt: skip
        return kept

    def right(self, network: nn.Module) -> npt.NDArray[np.bool_]:
        """Whether each of the compared images is classified correctly."""
        return correctness(network, self.compared, self.prepare)


def curvature_scores(network: nn.Module, prunable: Prunable, images: Tensor) -> dict[str, Scores]:
    """Return the expected increase of the loss, in nats, if each unit is removed.

    Removing a unit changes each layer that produces it, batch-norm included, by its output y. The
    expected cost is G E[y^2] / 2 with the diagonal curvature G of
    :mod:`secateur.quantization.curvature`, as in Optimal Brain Damage (LeCun et al. 1990, eq. 5)
    with outputs instead of weights.

    Args:
        network: In inference mode.
        prunable: Of the same network.
        images: Normalized float32 (N, C, H, W).

    Returns:
        From group to scores, float64 of shape (units,).
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, SHAPE, path, {})
        model = onnx.load(path)
    curvature = output_curvature(model, images)
    graph = Simulated(model)
    with torch.no_grad():
        outputs, _ = layer_outputs(graph, images)
    costs = {}
    for node in weighted_nodes(graph.graph):
        others = [axis for axis in range(outputs[node.name].ndim) if axis != 1]
        power = outputs[node.name].square().mean(others).numpy()
        costs[node.input[1]] = curvature[node.name] * power / 2
    scores = {group.name: np.zeros(group.units) for group in prunable.groups}
    for group in prunable.groups:
        for member in group.makers():
            np.add.at(scores[group.name], member.unit, costs[member.axis.tensor][member.index])
    return scores


class Growing:
    """Loss with a penalty on channels to be removed, which grows from step to step.

    The penalty is half its strength times the sum of the squared weights that make or read these
    channels (GReg-1, Wang et al. 2021, section 3.2; the readers as in DepGraph, Fang et al. 2023).

    Args:
        masks: True where a weight is kept.
        steps: Steps until the strength is ``PENALTY``; it grows linearly.
    """

    def __init__(self, masks: Masks, steps: int) -> None:
        self.masks, self.steps, self.done = masks.tensors, steps, 0

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of one step, a scalar."""
        self.done += 1
        squares = [
            parameter.masked_fill(self.masks[name], 0).square().sum()
            for name, parameter in network.named_parameters()
            if name in self.masks
        ]
        strength = PENALTY * self.done / self.steps
        loss = F.cross_entropy(network(images), labels, label_smoothing=SMOOTHING)
        return loss + strength / 2 * torch.stack(squares).sum()


def run(cell: Cell, reference: Reference) -> dict[str, Any]:
    """Prune and retrain one network; return its record."""
    start = time.process_time()
    network, example = reference.network, torch.zeros(1, *SHAPE)
    some = reference.training.take(torch.arange(min(GRADIENTS, len(reference.training))))
    options = recipe.Removal(
        importance=IMPORTANCE.get(cell.criterion, cell.criterion), scope=cell.scope,
        objective="macs", target=LEFT, round_to=1,
    )  # fmt: skip
    if cell.criterion == "taylor":
        leave_gradients(network, some, reference.prepare)
    scores = None
    if cell.criterion == "curvature":
        prunable = select_groups(network, example, options)
        scores = curvature_scores(network, prunable, reference.prepare(some.pixels))
    plan, _ = plan_channels(network, example, options, 1 - LEFT, seed=cell.seed, scores=scores)
    epochs = MORE
    if cell.criterion == "growing":
        network, epochs = copy.deepcopy(network), MORE - 1
        penalty = Growing(plan_masks(network, plan), len(reference.training) // BATCH)
        network = reference.train(network, 1, RATE / 2, penalty)
    smaller = remove(network, plan)
    record = {
        "criterion": cell.criterion, "scope": cell.scope, "seed": cell.seed,
        "images": len(reference.training), "compared": len(reference.compared),
        "macs_left": macs(smaller, SHAPE) / macs(network, SHAPE),
        "parameters_left": parameters(smaller) / parameters(network),
        "right_before_retraining": int(reference.right(smaller).sum()),
    }  # fmt: skip
    right = reference.right(reference.train(smaller, epochs, RATE / 2))
    return record | _answers(right) | {"seconds": round(time.process_time() - start, 1)}


def _answers(right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    packed = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {"right": packed, "processor": environment.processor(), "commit": environment.commit(),
            "versions": environment.versions()}  # fmt: skip


def measure(path: Path, data: Path, images: int) -> None:
    """Run missing cells."""
    keep_freed_memory()
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {Cell(r["criterion"], r["scope"], r["seed"]) for r in read(path)}
    reference: Reference | None = None
    for cell in cells():
        if cell in done:
            continue
        if reference is None or reference.seed != cell.seed:
            reference = Reference(cell.seed, data, images)
        records = [run(cell, reference)]
        if (unpruned := Cell("none", "none", cell.seed)) not in done:
            done.add(unpruned)
            records.append({
                "criterion": "none", "scope": "none", "seed": cell.seed, "images": images,
                "compared": len(reference.compared), "macs_left": 1.0, "parameters_left": 1.0,
                **_answers(reference.right(reference.network)),
            })  # fmt: skip
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)


def read(path: Path) -> list[dict[str, Any]]:
    """Existing records."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- the page


def answers(record: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """100 for each correct image, else 0."""
    packed = np.frombuffer(base64.b64decode(record["right"]), np.uint8)
    return 100.0 * np.unpackbits(packed)[: record["compared"]]


def against(records: Records, others: Records) -> tuple[float, float, float] | None:
    """Mean accuracy minus that of ``others`` for the same seeds, in points, with a 95 % interval.

    Differences of each image are averaged over seeds; the interval is Student's t over images.
    """
    by_seed = {record["seed"]: record for record in others}
    pairs = [(each, by_seed[each["seed"]]) for each in records if each["seed"] in by_seed]
    if not pairs:
        return None
    each = np.mean([answers(a) - answers(b) for a, b in pairs], axis=0)
    reach = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5
    return float(each.mean()), float(each.mean() - reach), float(each.mean() + reach)


def page(records: Records) -> str:
    """The page as Markdown."""
    unpruned = [record for record in records if record["criterion"] == "none"]
    if not unpruned:
        return "# Criteria compared\n\nNothing is measured yet.\n"
    lines = [
        "# Criteria compared", "",
        "Written by `python -m benchmarks criteria --data DIR` from [its cells](cells.jsonl). "
        f"ResNet-8 on CIFAR-10, {unpruned[0]['images']:,} training images, {EPOCHS} epochs. "
        f"Channels are removed until {100 * LEFT:.0f} % of the multiply-accumulates remain; {MORE} "
        f"epochs follow. Accuracy on {unpruned[0]['compared']:,} other training images, in "
        "percent: mean over seeds ± standard deviation (seeds). Differences are paired by image, "
        "with 95 % intervals over images, for these trainings.", "",
        f"Unpruned: {_mean(unpruned)}. {unpruned[0]['processor']}, one thread; "
        f"{', '.join(f'{k} {v}' for k, v in unpruned[0]['versions'].items())}; "
        f"commit {unpruned[0]['commit']}.", "", _winners(records),
    ]  # fmt: skip
    for scope in SCOPES:
        lines += ["", f"## `{scope}` scope", "",
                  "| Criterion | Accuracy | not retrained | minus random | minus l2 | Parameters |",
                  "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
        lines += _rows(records, scope)
    return "\n".join(lines) + "\n"


def _winners(records: Records) -> str:
    """Which criteria are more accurate than ``l2`` in the same scope, at 95 %."""
    better = []
    for scope, name in product(SCOPES, CRITERIA):
        own, l2 = (_of(records, each, scope) for each in (name, "l2"))
        difference = against(own, l2)
        if difference is not None and difference[1] > 0:
            better.append(f"`{name}` ({scope})")
    words = ", ".join(better) or "none"
    return f"More accurate than `l2`, the default, in the same scope, at 95 %: {words}."


def _of(records: Records, criterion: str, scope: str) -> Records:
    return [r for r in records if (r["criterion"], r["scope"]) == (criterion, scope)]


def _rows(records: Records, scope: str) -> Iterator[str]:
    by = {name: _of(records, name, scope) for name in CRITERIA}
    there = [name for name in CRITERIA if by[name]]
    for name in sorted(there, key=lambda name: -np.mean([answers(r).mean() for r in by[name]])):
        own = by[name]
        before = np.mean([100 * r["right_before_retraining"] / r["compared"] for r in own])
        kept = np.mean([r["parameters_left"] for r in own])
        differences = " | ".join(
            "–" if name == other else _interval(against(own, by[other]))
            for other in ("random", "l2")
        )
        yield f"| `{name}` | {_mean(own)} | {before:.1f} | {differences} | {kept:.2f} |"


def _mean(records: Records) -> str:
    values = [answers(record).mean() for record in records]
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread} ({len(values)})"


def _interval(difference: tuple[float, float, float] | None) -> str:
    return "–" if difference is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*difference)


def main(arguments: list[str]) -> None:
    """Run missing cells and write the page, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["report"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--records", type=Path, default=FOLDER / "cells.jsonl")
    parser.add_argument("--page", type=Path, default=FOLDER / "README.md")
    options = parser.parse_args(arguments)
    if options.what is None:
        measure(options.records, options.data, options.images)
    options.page.write_text(page(read(options.records)), encoding="utf-8")
