"""Publishes runs of ``secateur run`` under results/.

Run: python -m benchmarks quickstart RUN ...
Each RUN is an output folder of `secateur run`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from secateur.records import Record, read_records
from secateur.report import numbers
from secateur.report.findings import Findings
from secateur.report.summary import HEADINGS, summary_rows, variants_of
from secateur.wording import counted

ROOT = Path(__file__).parent.parent


def publish(run: Path) -> None:
    """Copy a run's recipe, records and report to results/NAME."""
    name = run.name.rpartition("-")[0]
    target = ROOT / "results" / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("*.tmp"))


def section(folder: Path) -> str:
    """The published run in ``folder`` as Markdown."""
    records = read_records(folder / "records.jsonl")
    rows = [[f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row]
            for row in (HEADINGS, *summary_rows(variants_of(Findings.of(records))))]  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" + " ---: |" * (len(HEADINGS) - 1))
    return "\n".join([_caption(folder.name, records), "", *lines])


def _caption(name: str, records: list[Record]) -> str:
    seconds_of = {str(r.at["stage"]): r.value for r in records if r.metric == "seconds"}
    epochs: dict[str, float] = {}
    for record in records:
        if record.metric == "epoch_seconds":
            stage = str(record.at["stage"])
            epochs[stage] = epochs.get(stage, 0) + record.value
    # The time of a resumed stage covers its last process only; epochs have their own times.
    seconds_of = {
        stage: max(seconds, epochs.get(stage, 0)) for stage, seconds in seconds_of.items()
    }
    bench = next(r for r in records if r.metric == "latency_ms")
    return (
        f"**`secateur run {name}`** ([report]({name}/report.md)): {bench.network} on "
        f"{bench.dataset}, {bench.geometry}, seed {bench.seed}. "
        f"Reference trained in {numbers.duration(seconds_of['train'])}, whole chain "
        f"{numbers.duration(sum(seconds_of.values()))}. {bench.processor}; {bench.runtime}, "
        "batch 1, "
        f"{counted(bench.threads, 'thread')}, n = {bench.n}; torch {bench.versions['torch']}."
    )


def runs_block() -> str:
    """All published runs for results/README.md."""
    folders = sorted(path.parent for path in (ROOT / "results").glob("*/records.jsonl"))
    return "\n\n".join(map(section, folders))


def main(arguments: list[str]) -> None:
    """Copy the runs named."""
    for run in arguments:
        publish(Path(run.rstrip("/")))
