"""Take runs into results/, and set the README's table anew from the records there.

Run: python tools/publish_results.py [RUN ...]
Each RUN is a folder that `secateur run` wrote; without any, only the table is set.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from secateur.records import Record, read_records
from secateur.report import numbers
from secateur.report.findings import Findings
from secateur.report.summary import HEADINGS, summary_rows

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: made by tools/publish_results.py -->", "<!-- end of results -->"


def publish(run: Path) -> None:
    """Copy a run's recipe, records and report to results/NAME."""
    name = run.name.rpartition("-")[0]
    target = ROOT / "results" / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("*.tmp"))


def section(folder: Path) -> str:
    """The published run in ``folder`` as Markdown: what it is, the table, what it took."""
    records = read_records(folder / "records.jsonl")
    rows = [[f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row]
            for row in (HEADINGS, *summary_rows(Findings.of(records)))]  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" + " ---: |" * (len(HEADINGS) - 1))
    return "\n".join([_says(folder.name, records), "", *lines])


def _says(name: str, records: list[Record]) -> str:
    spent = {str(r.at["stage"]): r.value for r in records if r.metric == "seconds"}
    epochs: dict[str, float] = {}
    for record in records:
        if record.metric == "epoch_seconds":
            stage = str(record.at["stage"])
            epochs[stage] = epochs.get(stage, 0) + record.value
    # A resumed stage's own clock starts with its last process; its epochs remember the others.
    spent = {stage: max(seconds, epochs.get(stage, 0)) for stage, seconds in spent.items()}
    bench = next(r for r in records if r.metric == "latency_ms")
    return (
        f"**`secateur run {name}`** ([report](results/{name}/report.md)): {bench.network} on "
        f"{bench.dataset}, {bench.geometry}, seed {bench.seed}. "
        f"Reference trained in {numbers.duration(spent['train'])}, whole chain "
        f"{numbers.duration(sum(spent.values()))}. {bench.processor}; {bench.runtime}, batch 1, "
        f"{bench.threads} threads, n = {bench.n}; torch {bench.versions['torch']}."
    )


def readme(text: str) -> str:
    """Return the README with the results between the two marks made anew."""
    folders = sorted(path.parent for path in (ROOT / "results").glob("*/records.jsonl"))
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n\n" + "\n\n".join(map(section, folders)) + f"\n\n{END}{tail}"


def main() -> None:
    """Publish the runs named on the command line, then set the table."""
    for run in sys.argv[1:]:
        publish(Path(run.rstrip("/")))
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
