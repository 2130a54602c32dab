"""The page of networks that were halved, from their records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

EXACT = 1e-6
"""Largest difference by rounding; larger ones are errors."""
REDUCED = 0.45
NARROWEST = 0.45
"""Least fraction of a layer's channels that rounding leaves of a half."""
PLANNED = 5.0
"""Processor seconds of a plan that a user does not mind."""


def page(
    records: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    times: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as Markdown; ``times`` are the records of ``plan_time``."""
    order = sorted(names, key=lambda name: (name.startswith("timm "), name))
    rows = {name: records[name] for name in order if name in records}
    if not rows:
        return "# Networks, halved\n\nNothing is measured yet.\n"
    missing = [name for name in order if name not in rows]
    any_record = next(iter(rows.values()))
    versions = ", ".join(f"{k} {v}" for k, v in any_record["versions"].items())
    lines = [
        "# Networks, halved",
        "",
        "Made by `python -m benchmarks networks results/networks.jsonl docs/networks.md` from "
        "[its records](../results/networks.jsonl); the command measures missing networks.",
        "",
        "Half of the channels of each group are removed at random, with `round_to=1` and "
        '`grouped="width"`; weights are random too. *Error* is the largest difference between the '
        "outputs of the smaller and the masked network in float64, divided by the largest output. "
        "Torch-Pruning removes half with its own defaults and random importance, except in the "
        "last layer; attentions are given their number of heads. Its smaller networks are only "
        "checked to run and to return the same shape.",
        "",
        f"{any_record['processor']}, one thread; {versions}. Seconds are processor time of "
        f"planning, on a machine that did other work too. Commits: {commits(rows)}.",
        "",
        *summary(rows),
        "",
        *([f"Not measured ({len(missing)}): {', '.join(missing)}.", ""] if missing else []),
        "| Network | Parameters | left | MACs | left | Error | Plan, s | Torch-Pruning: left "
        "| Kept layers, and why |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        *(_row(name, record) for name, record in rows.items()),
        *objectives(times),
    ]
    return "\n".join(lines) + "\n"


def commits(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The commits that made the records, with the number of networks of each."""
    counts = Counter(record["commit"] for record in rows.values())
    return ", ".join(f"{commit} ({count})" for commit, count in counts.most_common())


def left(record: Mapping[str, Any]) -> float | None:
    """Remaining fraction of the parameters, None without a result."""
    if "failure" in record:
        return None
    before, after = record["parameters"]
    return after / before


def summary(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Counts over all networks."""
    secateur = [record["secateur"] for record in rows.values()]
    torch_pruning = [record["torch_pruning"] for record in rows.values()]
    done = [record for record in secateur if "failure" not in record]
    shares = [left(record) for record in done]
    both = [(left(a), left(b)) for a, b in zip(secateur, torch_pruning, strict=True)]
    asked = [record.get("narrowest", 1.0) >= NARROWEST for record in torch_pruning]
    further = sum(
        a is not None and b is not None and b < a - 0.01 and half
        for (a, b), half in zip(both, asked, strict=True)
    )
    facts = (
        ("networks", len(rows), len(rows)),
        ("run and return the same shape after the removal", len(done),
         sum("failure" not in record for record in torch_pruning)),
        ("below 0.45 of the parameters", sum(share < REDUCED for share in shares),
         sum((left(record) or 1) < REDUCED for record in torch_pruning)),
        ("nothing removed", sum(share == 1 for share in shares),
         sum(left(record) == 1 for record in torch_pruning)),
        ("differ from the masked network by more than 1e-6",
         sum(record["error"] > EXACT for record in done), "not compared"),
        (f"planned in at most {PLANNED:g} s", sum(r["seconds"] <= PLANNED for r in done), "–"),
        ("fail or are refused", len(secateur) - len(done),
         sum("failure" in record for record in torch_pruning)),
        ("removes more than half: a layer keeps less than 0.45 of its channels", "not compared",
         asked.count(False)),
        ("removes half, and at least 0.01 of the parameters more than the other",
         sum(a is not None and (b is None or a < b - 0.01) for a, b in both), further),
    )  # fmt: skip
    worst = max((record["error"] for record in done), default=0.0)
    return [
        "| | Secateur | Torch-Pruning |",
        "| --- | ---: | ---: |",
        *(f"| {what} | {first} | {second} |" for what, first, second in facts),
        "",
        f"Largest error: {worst:.1e}.",
    ]


def objectives(times: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of planning by an objective; the newest record of each network."""
    newest = {record["network"]: record for record in times}
    if not newest:
        return []
    last = [*newest.values()][-1]
    rows = []
    for name, record in newest.items():
        plain, macs, parameters = (
            record["seconds"][kind] for kind in ("fraction", "macs", "parameters")
        )
        rows.append(
            f"| {name} | {plain:.2f} | {macs:.2f} ({macs / plain:.2f}×) | {parameters:.2f} "
            f"({parameters / plain:.2f}×) |"
        )
    return [
        "",
        "## Planning by an objective",
        "",
        "`python -m benchmarks plan_time results/plan_time.jsonl`: processor seconds of "
        f"`secateur.plan_removal`, the least of {last['repeat']}, one thread; {last['processor']}, "
        f"commit {last['commit']}.",
        "",
        "| Network | Fraction 0.5 | Half of the MACs | Half of the parameters |",
        "| --- | ---: | ---: | ---: |",
        *rows,
    ]


def _row(name: str, record: Mapping[str, Any]) -> str:
    secateur, torch_pruning = record["secateur"], record["torch_pruning"]
    other = left(torch_pruning)
    peer = f"fails: {_short(torch_pruning['failure'])}" if other is None else f"{other:.2f}"
    if "failure" in secateur:
        return f"| {name} | | | | | | | {peer} | fails: {_short(secateur['failure'])} |"
    (before, _), (macs, fewer) = secateur["parameters"], secateur["macs"]
    protected = "; ".join(
        f"{count} layers (`{first}`): {_short(reason)}"
        for reason, (count, first) in secateur["protected"].items()
        if reason != "they are the network's output"
    )
    return (
        f"| {name} | {before:,} | {left(secateur):.2f} | {macs / 1e6:,.0f} M | "
        f"{fewer / macs:.2f} | {secateur['error']:.0e} | {secateur['seconds']:.1f} | {peer} | "
        f"{protected or 'nothing'} |"
    )


def _short(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:140]
