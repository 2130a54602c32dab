"""The data of a compression's report, and the report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from secateur import environment
from secateur.benchmarking.cost import nonzero_parameters
from secateur.compression.candidate import Measured
from secateur.compression.candidate_stages import Stages
from secateur.compression.deliver import recipe_toml
from secateur.compression.final import TIMED, Final
from secateur.compression.inputs import Inputs
from secateur.compression.settings import Settings
from secateur.compression.verdict import Kind
from secateur.report.contents import (
    Candidate,
    Download,
    Estimate,
    Provenance,
    Report,
    Step,
    Variant,
    Verdict,
)
from secateur.report.render import render_report
from secateur.statistics import Interval, spread
from secateur.wording import counted

_STATUS: dict[Kind, Literal["met", "missed", "undecided"]] = {
    "meets": "met",
    "misses": "missed",
    "cannot tell": "undecided",
}


def write_page(
    out: Path,
    stages: Stages,
    inputs: Inputs,
    settings: Settings,
    tried: Sequence[Measured],
    chosen: Measured,
    final: Final,
    seconds: float,
) -> None:
    """Write the report into ``out``, beside the files that it links to."""
    report = Report(
        title=f"{stages.problem.name}, compressed",
        description=f"{chosen.candidate.name}, of {counted(len(tried), 'candidate')}",
        facts=_facts(stages, settings),
        verdict=_verdict(final, settings),
        variants=_variants(stages, chosen, final),
        candidates=tuple(_candidate(one, one is chosen) for one in tried if one.folder),
        downloads=tuple(
            _download(out / name, note) for name, note in _FILES if (out / name).exists()
        ),
        usage=(
            "import secateur",
            'network = secateur.load("net.sec")',
            'print(network.predict(["image.png"]))',
        ),
        ladder=tuple(
            Step(name=words, latency=_estimate(final.latency(name), len(final.samples_ms[name])))
            for name, words in TIMED.items()
            if name in final.samples_ms
        ),
        layers=final.changes.layers,
        images=final.changes.images,
        provenance=_provenance(stages, inputs, settings, tried, final, seconds),
    )
    render_report(report, out)


_FILES = (
    ("net.sec", "the network, packed"),
    ("net.onnx", "the same, for any ONNX runtime"),
    ("curve.csv", "every candidate"),
    ("run_python.py", "classifies image files"),
    ("recipe.toml", "repeats this run"),
)


def _facts(stages: Stages, settings: Settings) -> tuple[str, ...]:
    problem, before = stages.problem, stages.reference_facts
    return (
        f"{problem.name}, {before['parameters']:,} parameters",
        f"{problem.data_name}, {counted(len(problem.classes), 'class', 'classes')}",
        f"{problem.prepare.resolution} pixels",
        f"{counted(settings.bench.threads, 'thread')} of {environment.processor()}",
    )


def _verdict(final: Final, settings: Settings) -> Verdict:
    verdict = final.verdict
    return Verdict(
        status=_STATUS[verdict.kind],
        sentence=str(verdict),
        proof=f"It is {final.summary}.",
        goal=str(settings.goal),
    )


def _variants(stages: Stages, chosen: Measured, final: Final) -> tuple[Variant, ...]:
    before, network = stages.reference_facts, stages.network(chosen.candidate)
    reference = Variant(
        name="reference",
        top1=_percent(final.accuracy("reference"), len(final.labels)),
        parameters=before["parameters"],
        macs=before["macs"],
        size_bytes=final.bytes_before,
        latency=_estimate(final.latency("reference"), len(final.samples_ms["reference"])),
        samples_ms=tuple(final.samples_ms["reference"].tolist()),
        memory_mb=final.changes.memory_mb.get("reference"),
    )
    value, low, high = final.verdict.drop
    n = len(final.labels)
    result = reference.model_copy(
        update={
            "name": "compressed",
            "top1": _percent(final.accuracy("net"), n),
            "drop": Estimate(value=value, low=low, high=high, n=n),
            "parameters": chosen.parameters,
            "nonzero_parameters": nonzero_parameters(network) or None,
            "macs": chosen.macs,
            "size_bytes": final.bytes_after,
            "latency": _estimate(final.latency("net"), len(final.samples_ms["net"])),
            "samples_ms": tuple(final.samples_ms["net"].tolist()),
            "memory_mb": final.changes.memory_mb.get("net"),
        }
    )
    packed = result.model_copy(
        update={"name": "packed", "size_bytes": final.packed_bytes, "decodes_to": "compressed"}
    )
    return reference, result, packed


def _candidate(one: Measured, is_chosen: bool) -> Candidate:
    return Candidate(
        name=one.candidate.name,
        top1=_percent(one.accuracy, len(one.right)),
        size_bytes=one.packed_bytes,
        latency=_estimate(spread(one.latencies_ms), len(one.latencies_ms)),
        macs=one.macs,
        chosen=is_chosen,
        settings={"kept": f"{one.candidate.kept:.2f}", "epochs": str(one.candidate.epochs)},
    )


def _provenance(
    stages: Stages,
    inputs: Inputs,
    settings: Settings,
    tried: Sequence[Measured],
    final: Final,
    seconds: float,
) -> Provenance:
    facts = {
        "command": shlex.join(["secateur", "compress", "recipe.toml"]),
        "seed": str(settings.seed),
        "threads": str(settings.bench.threads),
        "processor": environment.processor(),
        "commit": environment.commit(),
        "test images": f"{len(final.labels):,}, SHA-256 {final.fingerprint[:12]}",
        "seconds of this run": f"{seconds:.0f}",
    }
    facts |= {f"version of {name}": value for name, value in environment.versions().items()}
    return Provenance(
        recipe=recipe_toml(inputs, settings),
        facts=facts,
        stages=tuple((one.candidate.name, round(one.seconds, 1)) for one in tried),
    )


def _download(path: Path, note: str) -> Download:
    return Download(href=path.name, size_bytes=path.stat().st_size, note=note)


def _percent(interval: Interval, n: int) -> Estimate:
    value, low, high = (round(100 * bound, 4) for bound in interval)
    return Estimate(value=value, low=low, high=high, n=n)


def _estimate(interval: Interval, n: int) -> Estimate:
    value, low, high = np.round(interval, 5).tolist()
    return Estimate(value=value, low=low, high=high, n=n)
