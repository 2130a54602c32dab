"""The simulation of many cells: without costs it takes the work alone, and each cost is seen."""

from __future__ import annotations

import pytest

from benchmarks.cluster.simulation import SHARES, Costs, simulate


def test_without_costs_only_work_is_left() -> None:
    found = simulate(1000, 10, 60, Costs())
    assert found["work"] == pytest.approx(1, abs=0.02)
    assert found["hours"] == pytest.approx(1000 * 60 / 10 / 3600, rel=0.05)
    assert found["ideal"] <= found["hours"]


def test_each_cost_is_seen_where_it_arises() -> None:
    started = simulate(1000, 10, 60, Costs(start=60))
    assert started["start"] == pytest.approx(0.5, abs=0.02)
    driven = simulate(1000, 10, 60, Costs(driver=60))  # one at a time
    assert driven["hours"] == pytest.approx(1000 * 60 / 3600, rel=0.05)
    stored = simulate(1000, 10, 60, Costs(make=lambda stages: 6.0))
    assert stored["store"] == pytest.approx(0.5, abs=0.02)
    many, few = (simulate(n, 10, 60, Costs(make=lambda stages: stages / 1e3)) for n in (1000, 100))
    assert many["store"] > few["store"]
    assert sum(many[name] for name in SHARES) == pytest.approx(1, abs=0.02)


def test_cells_that_share_wait_for_each_other_only_as_neighbors() -> None:
    near, far = (simulate(1000, 10, 60, Costs(), 10, apart) for apart in (False, True))
    assert near["waiting"] > 0.2
    assert far["waiting"] < 0.05
    assert near["ideal"] == pytest.approx(1000 * 33 / 10 / 3600, rel=0.05)  # a half, and a tenth
