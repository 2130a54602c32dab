"""``secateur.compress``: from a trained network to tested files in one call."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from secateur.compression.candidate_stages import Stages
from secateur.compression.deliver import deliver, write_network
from secateur.compression.estimate import Estimate, measure_step
from secateur.compression.final import measure_final
from secateur.compression.inputs import Inputs, read_problem
from secateur.compression.loaders import Evaluate, Loader, UserLoop
from secateur.compression.preflight import check_space, check_time, plan_lines
from secateur.compression.problem import Problem
from secateur.compression.report_data import write_page
from secateur.compression.search import Search
from secateur.compression.settings import Settings, Target
from secateur.compression.verdict import Verdict
from secateur.console import say
from secateur.environment import choose_device
from secateur.store import Store
from secateur.training.cpu import keep_freed_memory
from secateur.training.trainer import TrainStep

Part = str | Path | Loader | None
"""Images: a folder, or a DataLoader."""


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a compression.

    Attributes:
        verdict: Result of the test against the allowed loss.
        onnx: The quantized ONNX file.
        packed: The packed file, net.sec.
        report: The report, an HTML page.
        curve: CSV file with accuracy, bytes and latency of every candidate.
        model: The pruned PyTorch network before quantization, in inference mode.
        summary: The reduction in size and latency, in one sentence.
    """

    verdict: Verdict
    onnx: Path
    packed: Path
    report: Path
    curve: Path
    model: nn.Module
    summary: str


def compress(
    model: nn.Module | str | Path | None = None,
    *,
    train: Part = None,
    validation: Part = None,
    test: Part = None,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    max_drop: float = 1.0,
    target: Target = "latency",
    latency_ms: float | None = None,
    size_bytes: int | None = None,
    within_seconds: float | None = None,
    out: str | Path = "compressed",
    device: str = "auto",
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    train_step: TrainStep | None = None,
    evaluate: Evaluate | None = None,
    settings: Settings | None = None,
) -> Result:
    """Compress a trained classifier as far as the allowed loss of accuracy permits.

    The given network is the reference and the teacher. Candidates are compared on the validation
    images; the test images are read once, for the chosen file. Running again resumes an interrupted
    run.

    Args:
        model: A network, or its description: see
            :func:`secateur.models.networks.build_described`; None for the network that ships with
            this package.
        train: Folder with ``train/``, ``val/``, ``test/`` or classes inside. With ``validation``
            and ``test``: a folder of classes, or a DataLoader of prepared images.
        validation: Folder of classes, or a DataLoader.
        test: Folder of classes, or a DataLoader.
        data: Alias of ``train``. Without either, the excerpt of FashionMNIST in this package is
            used.
        weights: File with the weights of a network given by its description.
        max_drop: Accuracy that may be lost, in percentage points, in (0, 100).
        target: The quantity to minimize: ``latency``, ``size`` or ``macs``.
        latency_ms: Limit on the latency of one image in ms, in place of ``target``.
        size_bytes: Limit on the packed file in bytes, in place of ``target``.
        within_seconds: Limit on the time of the search in seconds, kept within 10 %.
        out: Output folder.
        device: As in :func:`secateur.environment.choose_device`.
        image_size: Side in pixels of the network's square input.
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        train_step: Function of the network, prepared images (N, C, R, R) and labels (N,) that
            returns the loss, a scalar tensor; replaces cross-entropy and distillation.
        evaluate: Function of a predictor (prepared images to scores) and of ``validation`` or
            ``test`` as passed here; returns for each image whether the prediction is correct.
        settings: All other settings; the arguments above override its goal.

    Returns:
        Files, verdict and the pruned network.

    Raises:
        SecateurError: One line that says what is wrong and what to try.

    Examples:
        >>> try:
        ...     secateur.compress("torchvision:resnet17")
        ... except secateur.SecateurError as error:
        ...     print(str(error).partition(";")[0])
        cannot get the published weights (torchvision:resnet17): found Unknown model resnet17
        >>> result = secateur.compress(  # doctest: +SKIP
        ...     "torchvision:resnet18", weights="resnet18.pt", data="images/", max_drop=0.5
        ... )
        >>> result.verdict.kind, result.packed  # doctest: +SKIP
        ('meets', PosixPath('compressed/net.sec'))
    """
    keep_freed_memory()
    settings = settings or Settings()
    goal = settings.goal.model_copy(
        update={
            "max_drop": max_drop,
            "target": "size" if size_bytes and not latency_ms else target,
            "latency_ms": latency_ms,
            "size_bytes": size_bytes,
            "within_seconds": within_seconds,
        }
    )
    settings = Settings.model_validate(settings.model_dump() | {"goal": goal.model_dump()})
    own = model if isinstance(model, nn.Module) else None
    inputs = Inputs(
        network=type(model).__name__ if own is not None else str(model or Inputs.network),
        weights=Path(weights) if weights else None,
        data=Path(data) if data else None,
        image_size=image_size, mean=mean, std=std, seed=settings.seed,
    )  # fmt: skip
    named = {"train": train, "validation": validation, "test": test}
    loop = UserLoop(train_step=train_step, evaluate=evaluate, parts=named)
    problem = read_problem(inputs, choose_device(device), own, named, loop)
    return run(problem, settings, inputs, Path(out))


def run(problem: Problem, settings: Settings, inputs: Inputs, out: Path) -> Result:
    """Run a compression: preflight, search, verdict, files."""
    start = time.monotonic()
    estimate = plan(problem, settings, out)
    problem.load()  # after the checks, because it may take long
    stages = Stages(problem, settings, Store(out / "stages"))
    search = Search(stages, settings, estimate, settings.tune.epochs, start)
    chosen = search.run()
    final = measure_final(stages, chosen)
    final = replace(final, packed_bytes=write_network(out, stages, chosen, final))
    deliver(out, stages, inputs, settings, search.tried, chosen, final)
    seconds = time.monotonic() - start
    write_page(out, stages, inputs, settings, search.tried, chosen, final, seconds)
    return Result(
        final.verdict,
        out / "net.onnx",
        out / "net.sec",
        out / "report.html",
        out / "curve.csv",
        stages.network(chosen.candidate),
        final.summary,
    )


def plan(problem: Problem, settings: Settings, out: Path) -> Estimate:
    """Check a problem and print the plan; nothing is written, and a sample of images is read.

    Raises:
        SecateurError: The compression cannot succeed.
    """
    check_space(problem, out)
    estimate = _estimate(problem, settings)
    check_time(estimate)
    for line in plan_lines(problem, settings, estimate, settings.tune.epochs):
        say(line)
    return estimate


def _estimate(problem: Problem, settings: Settings) -> Estimate:
    step, forward = measure_step(problem)
    calibrated = settings.quantize.images + settings.quantize.scan_images
    return Estimate(
        step,
        forward,
        problem.training_images,
        calibrated + sum(problem.counts["validation"]),
        problem.test_images,
        settings.goal.within_seconds,
        settings.bench.warmup + settings.bench.repeats,
        rounding_epochs=settings.quantize.epochs,
    )
