"""The tables of compressed networks, from the records beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import records
from benchmarks.common.markdown import drop_text, in_points, made_with, ratio_text, table
from benchmarks.common.records import Record
from benchmarks.peers.report import Network, failure, named
from benchmarks.peers.rows import ROWS
from secateur.report.numbers import NONE, fixed, times
from secateur.statistics import paired_drop

FOLDER = Path(__file__).parent.parent / "results" / "compress"
COMPRESSED, PEERS, TIMES = "networks.jsonl", "peers.jsonl", "times.jsonl"
MAX_DROP = 1.0
"""Points of accuracy that may be lost."""


def newest(rows: list[Record], network: str) -> dict[str, Record]:
    """The last record of each row of a network."""
    return {row["row"]: row for row in rows if row["network"] == network}


def page(folder: Path) -> Iterator[str]:
    """All tables, as Markdown."""
    compressed = {row["network"]: row for row in records.read(folder / COMPRESSED)}
    evaluated, timed = records.read(folder / PEERS), records.read(folder / TIMES)
    latest = {row["network"]: row for row in timed}
    networks = {name: Network(newest(evaluated, name), latest.get(name, {})) for name in compressed}
    yield from table(HEADINGS, [cells(row) for row in compressed.values()])
    yield ""
    yield from table(
        COMPARED, [compared(name, network, compressed[name]) for name, network in networks.items()]
    )
    for name, network in networks.items():
        if network.keys:
            yield from ("", f"### {name}", "", *table(ROW_HEADINGS, [*peer_rows(network)]))


def networks_block() -> str:
    """The tables of the records under results/, with machines and versions."""
    rows = records.read(FOLDER / COMPRESSED)
    if not rows:
        return "Not measured yet."
    return "\n".join([*page(FOLDER), "", made_with([*rows, *records.read(FOLDER / TIMES)])])


# ---- results of `secateur compress`

HEADINGS = [
    "Network", "Top-1 before, %", "After", "Drop, points", "Verdict", "Bytes before",
    "After, packed", "ms eager", "ms ONNX Runtime fp32", "ms after",
]  # fmt: skip


def cells(row: Record) -> list[str]:
    """One network."""
    if "error" in row:
        return [row["network"], row["error"], *[""] * (len(HEADINGS) - 2)]
    before, after, packed = row["variants"]
    ladder = [step["latency"]["value"] for step in row["ladder"]]
    return [
        row["network"],
        estimate(before["top1"]),
        estimate(after["top1"]),
        estimate(after["drop"]),
        row["verdict"]["status"],
        f"{before['size_bytes']:,.0f}",
        f"{packed['size_bytes']:,.0f}",
        *(fixed(value) for value in ladder),
    ]


def estimate(value: dict[str, Any]) -> str:
    """A number with its bounds."""
    return f"{fixed(value['value'])} [{fixed(value['low'])}, {fixed(value['high'])}]"


# ---- compared with the best peer

COMPARED = [
    "Network", "Best peer", "Own minus peer, points", "Bytes, peer / own", "Time, peer / own",
    "At least as good",
]  # fmt: skip


def best_peer(network: Network) -> str | None:
    """The fastest peer within the allowed loss, or the most accurate one."""
    fastest = [network.fastest(kind, MAX_DROP) for kind in ("int8", "pruned")]
    medians = {
        key: float(np.median(samples))
        for key in fastest
        if key is not None and (samples := network.milliseconds(key)) is not None
    }
    if medians:
        return min(medians, key=medians.__getitem__)
    drops = {
        key: drop.value
        for key in network.keys
        if ROWS[key].kind in ("int8", "pruned") and (drop := network.drop(key)) is not None
    }
    return min(drops, key=drops.__getitem__) if drops else None


def compared(name: str, network: Network, row: Record) -> list[str]:
    """Compare Secateur with the best peer in accuracy, bytes and time."""
    peer = best_peer(network)
    own = network.fastest("secateur", 100.0) or "ours-int8"
    peer_right, own_right = network.right(peer) if peer else None, network.right(own)
    if peer is None or peer_right is None or own_right is None or "error" in row:
        return [name, "nothing to compare with", *[NONE] * 4]
    gain = in_points(paired_drop(own_right, peer_right))
    smaller = network.rows[peer]["bytes"] / row["variants"][2]["size_bytes"]
    faster = network.ratio(peer, own)
    lacking = []
    if gain.value < 0:
        lacking.append(f"{fixed(-gain.value)} points less accurate")
    if smaller < 1:
        lacking.append(f"{times(1 / smaller)} as large")
    if faster is not None and faster.value < 1:
        lacking.append(f"{times(1 / faster.value)} as slow")
    return [
        name, named(peer), drop_text(gain), times(smaller),
        NONE if faster is None else ratio_text(faster),
        f"no: {', '.join(lacking)}" if lacking else "yes",
    ]  # fmt: skip


# ---- all rows

ROW_HEADINGS = ["Row", "Bytes", "Drop against eager, points", "ms", "Faster than eager", "Note"]


def peer_rows(network: Network) -> Iterator[list[str]]:
    """A line for each row."""
    for key in network.keys:
        record, drop = network.rows[key], network.drop(key)
        samples, faster = network.milliseconds(key), network.ratio("eager", key)
        failed = {failure(record), failure(network.timed(key))} - {NONE}
        yield [
            named(key),
            f"{record['bytes']:,}" if "bytes" in record else NONE,
            NONE if drop is None else drop_text(drop),
            NONE if samples is None else fixed(float(np.median(samples)), 3),
            NONE if faster is None else ratio_text(faster),
            "; ".join([record.get("training", ""), *sorted(failed)]).strip("; "),
        ]
