"""Chooses segments of chains within a limit on latency, exactly under an additive model.

Latency and loss of a network are modeled as sums over its segments (Kim et al. 2023, arXiv
2301.12187, equation 4; Kim et al. 2024, "LayerMerge", arXiv 2406.12837, section 3.2). Every
boundary then needs only the least loss for each latency spent before it: dynamic programming over
boundaries and a discretized latency gives the optimum of the tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from secateur.pruning.merging.links import Segment

UNITS = 10_000
"""Steps of the budget. Each latency is rounded up, so that a choice never exceeds the budget; with
50 segments, at most 0.5 % of it is left unused."""


def choose_merges(
    latency: Mapping[Segment, float],
    loss: Mapping[Segment, float],
    budget: float,
    units: int = UNITS,
) -> list[Segment] | None:
    """Return the segments with the least total loss within a total latency.

    Args:
        latency: Non-negative, of each segment that may be chosen, in any unit. Every chain of these
            segments is covered exactly once, from its first boundary to its last.
        loss: Of the same segments.
        budget: Largest total latency.
        units: Steps into which the budget is divided; latencies are rounded up to whole steps.

    Returns:
        In order along each chain; None if no choice is within the budget.

    Raises:
        ValueError: A latency is negative or not finite.

    Examples:
        >>> from secateur.pruning.merging.chains import find_chains
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> (chain,) = find_chains(network, torch.zeros(1, 3, 8, 8))
        >>> first, both, second = chain.segments(most_kernel=7)
        >>> latency, loss = {first: 3, both: 4, second: 2}, {first: 0, both: 0.1, second: 0}
        >>> [str(segment) for segment in choose_merges(latency, loss, budget=4.5)]
        ['merge 0 to 2']
    """
    if not all(0 <= value < math.inf for value in latency.values()):
        raise ValueError("latencies must be finite and not negative")
    chosen: list[Segment] = []
    best = np.zeros(max(0, units) + 1 if budget > 0 else 1)
    steps = {s: _steps(latency[s], budget, units) for s in latency}
    tables = []
    for chain in dict.fromkeys(segment.chain for segment in latency):
        own = [segment for segment in latency if segment.chain == chain]
        table = _Table(own, steps, loss, len(chain.links), best)
        tables.append(table)
        best = table.values[-1]
    left = int(np.argmin(best))
    if not math.isfinite(best[left]):
        return None
    for table in reversed(tables):
        segments, left = table.walk_back(left)
        chosen = segments + chosen
    return chosen


def _steps(latency: float, budget: float, units: int) -> int:
    """Latency in whole steps of the budget, rounded up, but not for a rounding error."""
    if latency == 0:
        return 0
    return math.ceil(latency / budget * units - 1e-9) if budget > 0 else units + 1


class _Table:
    """The least loss at each boundary of a chain for each number of steps so far.

    Args:
        segments: Of the chain.
        steps: Latency of each.
        loss: Of each.
        links: Number of links of the chain.
        before: Least loss of the chains before for each number of their steps; entry n is for
            exactly n steps, or fewer.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        steps: Mapping[Segment, int],
        loss: Mapping[Segment, float],
        links: int,
        before: np.ndarray,
    ) -> None:
        self.values = [before, *(np.full(len(before), np.inf) for _ in range(links))]
        self._last = np.full((links + 1, len(before)), -1)
        self._segments, self._steps = segments, steps
        for number, segment in sorted(enumerate(segments), key=lambda pair: pair[1].end):
            own = steps[segment]
            if own >= len(before):
                continue
            through = self.values[segment.start][: len(before) - own] + loss[segment]
            value, last = self.values[segment.end][own:], self._last[segment.end][own:]
            better = through < value
            value[better], last[better] = through[better], number

    def walk_back(self, left: int) -> tuple[list[Segment], int]:
        """Segments of the optimum within ``left`` steps, and the steps for the chains before."""
        segments: list[Segment] = []
        boundary = len(self.values) - 1
        while boundary:
            segment = self._segments[self._last[boundary][left]]
            segments.insert(0, segment)
            boundary, left = segment.start, left - self._steps[segment]
        return segments, left
