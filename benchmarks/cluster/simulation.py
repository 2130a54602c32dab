"""A grid on many nodes, simulated from what one cell costs: where time goes beside the work."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

STAGES = 10
"""Stages of a cell, each a folder of the store; half of them are shared with other cells."""


@dataclass(frozen=True)
class Costs:
    """What a cell costs beside its work, in seconds.

    Attributes:
        start: To start its process.
        driver: Of the one process that hands out cells and hears of their ends.
        make: From the stages in the store to what the store adds for one more.
    """

    start: float = 0.0
    driver: float = 0.0
    make: Callable[[int], float] = lambda stages: 0.0


def simulate(
    cells: int,
    nodes: int,
    work: float,
    costs: Costs,
    shared: int = 1,
    apart: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Simulate a grid, event by event: every node runs one cell at a time.

    A cell starts a process, makes or finds its shared stages, makes the others, and ends at the
    driver, which answers one at a time. Cells that come while another one makes the stages they
    share wait for it, as they do for its lock.

    Args:
        cells: How many.
        nodes: How many.
        work: Seconds of a cell's own work, half of it in the shared stages; each cell draws between
            a half and one and a half of that.
        costs: Beside the work.
        shared: Cells that have their first half in common.
        apart: They are spread over the list of cells; else they follow one another.
        seed: Of the draws.

    Returns:
        ``hours``; ``ideal``, hours of the work alone; and shares of all nodes' time that are
        ``work``, ``start``, ``store``, ``waiting`` for a lock, and ``driver``.
    """
    draw, seconds = random.Random(seed), Counter[str]()  # noqa: S311 - a simulation
    events = [(0.0, 0, node) for node in range(nodes)]  # time, whether a cell ends, node
    there_from: dict[int, float] = {}
    begun, stored, driver_free = 0, 0, 0.0
    while events:
        now, ends, node = heapq.heappop(events)
        if ends:
            driver_free = max(now, driver_free) + costs.driver
            seconds["driver"] += driver_free - now
            heapq.heappush(events, (driver_free, 0, node))
            continue
        if begun == cells:
            continue
        group = begun % max(1, cells // shared) if apart else begun // shared
        half = work * draw.uniform(0.5, 1.5) / 2
        begun, first = begun + 1, group not in there_from
        ready = now + costs.start
        there_from.setdefault(group, ready + half)
        made = STAGES if first else STAGES // 2
        parts = {
            "start": costs.start,
            "waiting": 0.0 if first else max(0.0, there_from[group] - ready),
            "work": half + (half if first else 0.0),
            "store": made * costs.make(stored),
        }
        stored += made
        seconds.update(parts)  # type: ignore[arg-type]
        heapq.heappush(events, (now + sum(parts.values()), 1, node))
    total = {name: seconds[name] / (nodes * driver_free) for name in SHARES}
    return {"hours": driver_free / 3600, "ideal": seconds["work"] / nodes / 3600, **total}


SHARES = ("work", "start", "store", "waiting", "driver")
"""What a node's time goes into, but for the end of the grid, when some have nothing to do."""
