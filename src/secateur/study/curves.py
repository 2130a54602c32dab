"""Sensitivity curves: accuracy against the fraction pruned, over the seeds of a group."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from secateur.records import Record
from secateur.statistics import Interval, rates_across_seeds
from secateur.study.cells import Group

IN_FORCE = "network"
"""Layer name of the network-wide scan in records."""

NOT_IN_FORCE = "network, masks not in force"
"""Layer name of the same scan with masks that are not applied."""


class Point(NamedTuple):
    """One fraction of a curve.

    Attributes:
        fraction: Requested fraction, in [0, 1).
        percent: Top-1 in percent, with its 95 % interval over seeds and images.
        seeds: Number of seeds.
        images: Number of images of each seed.
    """

    fraction: float
    percent: Interval
    seeds: int
    images: int


class Curve(NamedTuple):
    """One network's curve.

    Attributes:
        network: Published name.
        label: Difference from the published recipe.
        points: By increasing fraction.
        demonstration: Whether masks were not applied.
    """

    network: str
    label: str
    points: tuple[Point, ...]
    demonstration: bool = False


def scan_points(group: Group, layer: str = IN_FORCE) -> tuple[Point, ...]:
    """Mean accuracy over seeds at each scanned fraction, by increasing fraction.

    One seed has its own interval. Several seeds have that of
    :func:`secateur.statistics.rates_across_seeds`, because scans do not store decisions per image.

    Args:
        group: Group of the scans.
        layer: ``IN_FORCE`` or ``NOT_IN_FORCE``.
    """
    by_fraction: dict[float, list[Record]] = defaultdict(list)
    for cell in group.cells:
        for record in cell.records:
            if record.metric == "scan_top1_percent" and record.at.get("layer") == layer:
                by_fraction[float(record.at["fraction"])].append(record)
    return tuple(_point(fraction, by_fraction[fraction]) for fraction in sorted(by_fraction))


def _point(fraction: float, records: list[Record]) -> Point:
    only = records[0]
    n = min(record.n for record in records)
    if len(records) == 1 and only.low is not None and only.high is not None:
        return Point(fraction, Interval(only.value, only.low, only.high), 1, n)
    rates = np.array([record.value for record in records]) / 100
    mean = rates_across_seeds(rates, n)
    return Point(fraction, Interval(*(100 * bound for bound in mean)), len(records), n)
