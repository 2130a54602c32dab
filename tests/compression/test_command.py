"""What a command line comes to, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.compression.command import Arguments, resolve
from secateur.compression.settings import Goal, parse_quantity
from secateur.errors import RecipeError


def test_weights_may_come_first() -> None:
    inputs, _ = resolve(Arguments(network="best.pt", description="torchvision:resnet18"))
    assert (inputs.network, inputs.weights) == ("torchvision:resnet18", Path("best.pt"))


def test_goals() -> None:
    _, settings = resolve(Arguments(max_drop=0.5, size="300kB", within="30m"))
    expected = Goal(max_drop=0.5, target="size", size_bytes=300_000, within_seconds=1800)
    assert settings.goal == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (Arguments(network="best.pt"), "weights need the network"),
        (Arguments(network="a.py:b", description="torchvision:alexnet"), "two networks"),
        (Arguments(latency="fast"), "not a latency.*2ms.*found fast"),
        (Arguments(size="3 apples"), "not a size"),
        (Arguments(within="0s"), "not a time"),
        (Arguments(max_drop=0), "goal.max_drop"),
        (Arguments(target="beauty"), "goal.target"),
        (Arguments(mean="a,b"), "not numbers .--mean"),
        (Arguments(network="none.toml"), "cannot read recipe .none.toml"),
    ],
)
def test_refused(arguments: Arguments, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(arguments)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("30m", "time", 1800),
        ("2ms", "latency", 2),
        ("500us", "latency", 0.5),
        ("1.5 MB", "size", 1.5e6),
    ],
)
def test_quantities(text: str, kind: str, value: float) -> None:
    assert parse_quantity(text, kind) == pytest.approx(value)
