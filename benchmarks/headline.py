"""The results shown in the README, from the records of their pages."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import compress_tables as compressed
from benchmarks.common import records
from benchmarks.common.markdown import drop_text
from benchmarks.common.markdown import table as markdown_table
from benchmarks.peers import report as peers
from benchmarks.study import STUDY, cell_text, groups
from secateur.report import numbers
from secateur.statistics import Interval
from secateur.study.cells import read_cells
from secateur.study.measured import difference, machines, mean, rate, speed_up
from secateur.study.published import DATASETS, TITLES

SHOWN = {"efficientnet_lite1": "EfficientNet-lite1", "resnet18": "ResNet-18"}
"""Compressed networks in the README, by their names in the records."""

COLUMNS = ["Network, images", "Accuracy lost, points", "File", "Faster", "Evidence"]


def headline_block() -> str:
    """A table of loss, size, speed-up and a link to the evidence."""
    return "\n".join(markdown_table(COLUMNS, [*_compressed_rows(), *_study_rows(), *_peer_rows()]))


def _compressed_rows() -> Iterator[list[str]]:
    """The networks of others that became smaller or faster within the allowed loss."""
    rows = {row["network"]: row for row in records.read(compressed.FOLDER / compressed.COMPRESSED)}
    for row in (rows[name] for name in SHOWN if name in rows):
        if row.get("verdict", {}).get("status") != "met":
            continue
        before, after, packed = row["variants"]
        drop, size = after["drop"], packed["size_bytes"]
        eager, float32, shipped = (step["latency"]["value"] for step in row["ladder"])
        lost = Interval(drop["value"], drop["low"], drop["high"])
        yield [
            f"{SHOWN[row['network']]}, CIFAR-10 at {row['size']} pixels, `secateur compress`",
            drop_text(lost),
            f"**{numbers.size(size)}**, {numbers.times(before['size_bytes'] / size)} smaller",
            f"{numbers.times(float32 / shipped)} than float on ONNX Runtime, "
            f"{numbers.times(eager / shipped)} than eager PyTorch",
            "[compress](results/compress/README.md)",
        ]


def _study_rows() -> Iterator[list[str]]:
    cells = read_cells(STUDY)
    for dataset in reversed(DATASETS):
        for network, group in groups(cells, dataset).items():
            size = mean(group, "packed", "size_bytes").value or 0
            faster = speed_up(group, "packed", machines(group)[0])
            yield [
                f"{TITLES[network]}, {TITLES[dataset]}",
                cell_text(difference(group, "reference", "packed")),
                f"**{numbers.size(size)}**, {rate(group, 'packed', 'size_bytes').text} smaller",
                f"{faster.text} than float on ONNX Runtime",
                "[study](results/study/reproduction/report.md)",
            ]


def _peer_rows() -> Iterator[list[str]]:
    for network in peers.networks(peers.read(peers.FOLDER)):
        fastest, peer = network.fastest("secateur"), network.fastest("int8")
        drop = network.drop(fastest) if fastest else None
        if fastest is None or peer is None or drop is None:
            continue
        to_eager, to_peer = network.ratio(peers.BASE, fastest), network.ratio(peer, fastest)
        if to_eager is None or to_peer is None:
            continue
        yield [
            f"{TITLES[network.about['network']]}, {TITLES[network.about['data']]}, at 224x224",
            drop_text(drop),
            numbers.size(network.rows[fastest]["bytes"]),
            f"{numbers.times(to_eager.value)} than eager PyTorch, "
            f"{numbers.times(to_peer.value)} than the best int8 of other tools",
            "[peers](results/peers/README.md)",
        ]
