"""Tables and goals of all peers, from the records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.common import records as json_lines
from benchmarks.common.markdown import aim_text, drop_text, in_points, made_with, ratio_text, table
from benchmarks.common.records import Record
from benchmarks.peers.rows import ALL_CHANNELS, ROWS
from secateur.benchmarking.timing import SETTLE
from secateur.report.numbers import NONE, fixed, size, times
from secateur.statistics import (
    Interval,
    no_worse,
    paired_drop,
    proportion,
    ratio_of_medians,
    spread,
)

WARMUP = 20
"""Untimed turns."""
BASE = "eager"
MAX_DROP = 0.5
"""Largest loss of top-1 in points for comparisons of speed."""
EAGER_AIM = {"mobilenet_v2": 12.0, "shufflenet_v2_x1_0": 10.0, "alexnet": 30.0}
"""Goal: speed-up over eager fp32."""
PEER_AIM = {"mobilenet_v2": 1.8, "shufflenet_v2_x1_0": 1.8, "alexnet": 5.0}
"""Goal: speed-up over the best unpruned int8 of other tools."""

FOLDER = Path(__file__).parents[2] / "results" / "peers"

HEAD = f"""# Secateur compared with other tools

Made by `python -m benchmarks peers report --out results/peers` from the records beside it, which
`python -m benchmarks peers run RECIPE` appends: one command for every row of one trained network,
on the same data, machine and run. Peers need the dependency group `peers`, and torch.compile a C++
compiler. Failed rows show their error.

Accuracy is of the recipe's own geometry on its test images; top-1 has Wilson's interval, the drop
is eager fp32 minus the row on the same images, with Agresti and Min's. Bytes are those of the
deployed files: a state, an exported program, an ONNX file, OpenVINO's two files, a packed file.
Time is that of one image at 224x224 with the same weights, with files made for this size; all rows
take turns in one process, each turn rests, runs {SETTLE + 1} times and counts the last. Ratios are
of medians, with a bootstrap interval over whole turns. Every interval is at 95 %; *no worse* is a
one-sided test at 95 %, of the seed at hand.

Every tool gets the same float network and calibration images, used as its manual asks: torch.ao
calibrates on one batch of 50, as published, with torchvision's ReLU for ReLU6; where the processor
has no VNNI, ONNX Runtime's `per_channel` and torchao have `reduce_range`. S8S8, the default of
ONNX Runtime's tool, has signed activations, U8S8 unsigned ones. NNCF's accuracy control looks at
2,000 validation images and may lose 0.3 points on them; Torch-Pruning removes the recipe's
fraction by magnitude, and trains afterward exactly as Secateur's rounds do.
"""


@dataclass(frozen=True)
class Network:
    """All records of one trained network.

    Attributes:
        rows: The newest record of accuracy of each row, by key.
        latency: The newest record of time, or empty.
    """

    rows: dict[str, Record]
    latency: Record

    @property
    def about(self) -> Record:
        """A record with the network's description."""
        return next(iter(self.rows.values()), self.latency)

    @property
    def keys(self) -> list[str]:
        """Rows with records, in the order of the table."""
        return [key for key in ROWS if key in self.rows or key in self.latency.get("rows", {})]

    def right(self, key: str) -> npt.NDArray[np.bool_] | None:
        """Correct test images of a row."""
        record = self.rows.get(key, {})
        if "right" not in record:
            return None
        return json_lines.unpack(record["right"], record["test_images"])

    def drop(self, key: str) -> Interval | None:
        """Drop in points against eager fp32."""
        base, row = self.right(BASE), self.right(key)
        return None if base is None or row is None else in_points(paired_drop(base, row))

    def timed(self, key: str) -> Record:
        """The record of a row's time."""
        return self.latency.get("rows", {}).get(ROWS[key].timed_as or key, {})

    def milliseconds(self, key: str) -> npt.NDArray[np.float64] | None:
        """Samples of a row, shape (turns,)."""
        result = self.timed(key).get("milliseconds")
        return None if result is None else np.array(result)

    def ratio(self, slow: str | None, fast: str) -> Interval | None:
        """Speed-up of one row over another."""
        if slow is None:
            return None
        baseline, fastest_own = self.milliseconds(slow), self.milliseconds(fast)
        return (
            None
            if baseline is None or fastest_own is None
            else ratio_of_medians(baseline, fastest_own)
        )

    def holds(self, key: str) -> bool:
        """Whether a row loses no more than ``MAX_DROP``, one-sided at 95 %."""
        base, right = self.right(BASE), self.right(key)
        return (
            base is not None and right is not None and no_worse(base, right, MAX_DROP / 100).holds
        )

    def fastest(self, kind: str, allowed: float = MAX_DROP) -> str | None:
        """The fastest row of a kind with a limited loss."""
        medians = {}
        for key in self.keys:
            samples, drop = self.milliseconds(key), self.drop(key)
            if ROWS[key].kind != kind or ROWS[key].timed_as or samples is None or drop is None:
                continue
            if drop.value <= allowed + 1e-9:
                medians[key] = float(np.median(samples))
        return min(medians, key=medians.__getitem__) if medians else None


def named(key: str) -> str:
    """Title and engine of a row."""
    return f"{ROWS[key].title} ({ROWS[key].engine})"


# ---- the table


def accuracy_cells(network: Network, key: str) -> list[str]:
    """Bytes, top-1, drop, and whether the loss is at most ``MAX_DROP`` points at 95 %."""
    record, right = network.rows.get(key, {}), network.right(key)
    if right is None:
        return [NONE, failure(record), NONE, NONE]
    result = in_points(proportion(int(right.sum()), right.size))
    top = f"{fixed(result.value)} [{fixed(result.low)}, {fixed(result.high)}]"
    drop = network.drop(key)
    if drop is None or key == BASE:
        return [size(record["bytes"]), top, NONE, NONE]
    return [size(record["bytes"]), top, drop_text(drop), "yes" if network.holds(key) else "no"]


def time_cells(network: Network, key: str, peer: str | None) -> list[str]:
    """Median with p10 to p90, and both ratios."""
    samples = network.milliseconds(key)
    if samples is None:
        return [failure(network.timed(key)), NONE, NONE]
    typical = spread(samples)
    shown = f"{fixed(typical.value)} ({fixed(typical.low)} to {fixed(typical.high)})"
    if ROWS[key].timed_as:
        shown += ", that of the file inside"
    ratios = (network.ratio(BASE, key) if key != BASE else None, network.ratio(peer, key))
    return [shown, *(NONE if ratio is None else ratio_text(ratio) for ratio in ratios)]


def failure(record: Record) -> str:
    """The error of a failed row, or why it was not run."""
    if "error" not in record:
        return NONE
    if ALL_CHANNELS in record["error"]:
        return f"not run: {ALL_CHANNELS}"
    return "failed: " + record["error"].replace("|", "/").replace("`", "'")


def network_table(network: Network) -> Iterator[str]:
    """The table of one network."""
    peer = network.fastest("int8")
    header = ["Row", "Bytes", "Top-1, %", "Drop, points"]
    header += [f"No worse than {MAX_DROP} points at 95 %", "Median, ms (p10 to p90)"]
    header += ["eager fp32 / it", "best int8 peer / it"]
    body = [
        [named(key), *accuracy_cells(network, key), *time_cells(network, key, peer)]
        for key in network.keys
    ]
    yield from table(header, body)


# ---- verdicts


def verdicts(network: Network) -> Iterator[str]:
    """Whether the goals are met."""
    if not network.latency:
        yield "- Accuracy alone: no time was measured."
        return
    fastest_own, peer, name = (
        network.fastest("secateur"),
        network.fastest("int8"),
        network.about["network"],
    )
    if fastest_own is None:
        yield f"- No row of Secateur with a time lost at most {MAX_DROP} points: both aims missed."
        return
    drop = network.drop(fastest_own)
    assert drop is not None
    shown = "shown" if network.holds(fastest_own) else "not shown"
    yield (
        f"- The fastest of Secateur that lost at most {MAX_DROP} points is {named(fastest_own)}: "
        f"{drop_text(drop)} points, {shown} at 95 %."
    )
    yield verdict(network, "eager fp32", BASE, fastest_own, EAGER_AIM[name])
    if peer is None:
        yield f"- No unpruned int8 peer with a time lost at most {MAX_DROP} points."
    else:
        opponent = f"the best unpruned int8 peer, {named(peer)}"
        yield verdict(network, opponent, peer, fastest_own, PEER_AIM[name])


def verdict(network: Network, opponent: str, slow: str, fast: str, aim: float) -> str:
    """One goal in a line."""
    result = network.ratio(slow, fast)
    if result is None:
        return f"- Against {opponent}: no time to compare with."
    end = aim_text(result.value >= aim, times(aim - result.value))
    return f"- Against {opponent}: {ratio_text(result)} as fast, aim {times(aim)}: {end}."


# ---- the page


def networks(records: list[Record]) -> list[Network]:
    """The newest records of each trained network, in order of appearance."""
    result: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in records:
        fields = ("recipe_id", "calibration", "images")
        cell = tuple(str(record[name]) for name in fields)
        result.setdefault(cell, {})[record["row"]] = record
    return [
        Network({k: r for k, r in rows.items() if k in ROWS}, rows.get("latency", {}))
        for rows in result.values()
    ]


def _command(recipe: str, sets: list[str]) -> str:
    changes = "".join(f" --set {change}" for change in sets)
    return f"python -m benchmarks peers run {recipe}{changes} --data DIR --out FILE"


def section(network: Network) -> Iterator[str]:
    """The section of one trained network."""
    about = network.about
    yield from (f"## {about['network']}, `{about['recipe']}`", "")
    yield from (f"`{_command(about['recipe'], about['sets'])}`", "")
    tested = {r["test_images"] for r in network.rows.values() if "test_images" in r}
    n = " or ".join(f"{count:,}" for count in sorted(tested)) or "no"
    opponent = f"{about['data']}, {about['geometry']}, seed {about['seed']}, n = {n} test images"
    yield f"{opponent}, {about['calibration']} images to calibrate on."
    if network.latency:
        n = network.latency["repeats"]
        yield f"Time: n = {n} turns a row, after {WARMUP} that do not count."
    yield from ("", *network_table(network), "", *verdicts(network), "")
    every = [*network.rows.values(), *([network.latency] if network.latency else [])]
    yield from (made_with(every), "")


def summary(result: list[Network]) -> list[str]:
    """A row for each timed network: Secateur's fastest file and the fastest int8 of other tools."""
    rows = []
    for network in result:
        fastest_own, peer = network.fastest("secateur"), network.fastest("int8")
        drop = network.drop(fastest_own) if fastest_own else None
        if fastest_own is None or peer is None or drop is None:
            continue
        ratios = (network.ratio(BASE, fastest_own), network.ratio(peer, fastest_own))
        rows.append(
            [
                f"{network.about['network']}, {network.about['data']}",
                ROWS[fastest_own].engine,
                drop_text(drop),
                *(NONE if ratio is None else ratio_text(ratio) for ratio in ratios),
                named(peer),
                f"{size(network.rows[peer]['bytes'])}, {size(network.rows[fastest_own]['bytes'])}",
            ]
        )
    header = ["Secateur's fastest", "on", "Lost, points", "Faster than eager fp32"]
    header += ["Faster than the best int8 peer", "which is", "Files: peer, Secateur"]
    return list(table(header, rows))


def peers_block() -> str:
    """The summary for results/README.md."""
    return "\n".join(summary(networks(read(FOLDER))))


def read(folder: Path) -> list[Record]:
    """All records of a folder."""
    return [r for path in sorted(folder.glob("*.jsonl")) for r in json_lines.read(path)]


def write_report(folder: Path) -> None:
    """Write README.md from the records beside it."""
    result = networks(read(folder))
    lines = [HEAD, *summary(result), "", *(line for network in result for line in section(network))]
    (folder / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
