"""The choice is the best of all choices, as trying each of them shows."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.pruning.merging.choice import choose_merges
from secateur.pruning.merging.links import Chain, Convolution, Link, Segment, Skip, Window


def chain(name, links, skips=()):
    window = Window((3, 3), (1, 1), (1, 1))
    return Chain(
        "",
        f"{name}in",
        tuple(
            Link(Convolution(f"{name}{n}", None, window, 4, 4, 1), f"{name}{n}", f"{name}{n}", True)
            for n in range(links)
        ),
        tuple(Skip(start, end, None, f"{name}add{end}") for start, end in skips),
    )


CHAINS = [chain("a", 5, [(1, 3)]), chain("b", 2, [(0, 2)]), chain("c", 1)]
SEGMENTS = [segment for each in CHAINS for segment in each.segments(99)]


def covers(one, start=0):
    """Every way to cover a chain from a boundary on."""
    if start == len(one.links):
        yield []
    for segment in (s for s in SEGMENTS if s.chain is one and s.start == start):
        for rest in covers(one, segment.end):
            yield [segment, *rest]


EVERY = [
    list(itertools.chain(*parts))
    for parts in itertools.product(*(list(covers(one)) for one in CHAINS))
]


def total(table, choice):
    return sum(table[segment] for segment in choice)


numbers = st.lists(st.integers(0, 20), min_size=len(SEGMENTS), max_size=len(SEGMENTS))


@settings(deadline=None)
@given(latencies=numbers, losses=numbers, budget=st.integers(0, 60))
def test_the_choice_is_the_best_of_all(latencies, losses, budget):
    latency, loss = (
        dict(zip(SEGMENTS, latencies, strict=True)),
        dict(zip(SEGMENTS, losses, strict=True)),
    )
    within = [choice for choice in EVERY if total(latency, choice) <= budget]
    chosen = choose_merges(latency, loss, budget, units=max(1, budget))
    if not within:
        assert chosen is None
    else:
        assert chosen in within
        assert total(loss, chosen) == min(total(loss, choice) for choice in within)


@settings(deadline=None, max_examples=20)
@given(latencies=numbers, losses=numbers, budget=st.floats(0.1, 60), units=st.integers(5, 500))
def test_a_coarse_budget_is_never_exceeded(latencies, losses, budget, units):
    latency, loss = (
        dict(zip(SEGMENTS, latencies, strict=True)),
        dict(zip(SEGMENTS, losses, strict=True)),
    )
    chosen = choose_merges(latency, loss, budget, units)
    if chosen is not None:
        assert total(latency, chosen) <= budget * (1 + 1e-9)
    reserve = 8 * budget / units  # a step for each link
    near = [choice for choice in EVERY if total(latency, choice) <= budget - reserve]
    if near:
        assert total(loss, chosen) <= min(total(loss, choice) for choice in near)


def test_latencies_are_rounded_up():
    latency = {s: 1.9 if s.kind == "keep" else 100.0 for s in SEGMENTS}
    links = sum(len(one.links) for one in CHAINS)
    loss = dict.fromkeys(SEGMENTS, 0.0)
    assert choose_merges(latency, loss, budget=1.5 * links, units=round(1.5 * links)) is None
    assert choose_merges(latency, loss, budget=2.0 * links, units=2 * links) is not None


def test_every_kind_of_choice_is_tried():
    assert {segment.kind for segment in SEGMENTS} == {"keep", "merge", "remove"}
    assert len(EVERY) > 20
    assert Segment(CHAINS[0], 1, 3, "remove") in SEGMENTS


@pytest.mark.parametrize("wrong", [-1, math.inf, math.nan])
def test_latencies_must_be_numbers(wrong):
    table = dict.fromkeys(SEGMENTS, 1.0)
    with pytest.raises(ValueError, match="latencies"):
        choose_merges(table | {SEGMENTS[0]: wrong}, table, 5)
