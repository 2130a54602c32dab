"""What is published is read as printed, and contradicts itself where it does and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from importlib import resources
from itertools import product

import pytest

from secateur.recipe import load_recipe
from secateur.study.published import (
    DATASETS,
    NETWORKS,
    Contradiction,
    Printed,
    PublishedRow,
    contradictions,
    published_recipe,
    published_rows,
    recipe_name,
    thresholds,
)


@pytest.mark.parametrize(
    ("text", "value", "low", "high"),
    [
        ("671K", 671_000, "670500", "671500"),
        ("2.2M", 2_200_000, "2150000", "2250000"),
        ("57M", 57_000_000, "56500000", "57500000"),
        ("1.76M", 1_760_000, "1755000", "1765000"),
        ("1.6", 1.6, "1.55", "1.65"),
        ("2", 2, "1.5", "2.5"),
        ("10", 10, "9.5", "10.5"),
        ("34.80", 34.8, "34.795", "34.805"),
    ],
)
def test_a_printed_number_has_the_range_of_its_digits(
    text: str, value: float, low: str, high: str
) -> None:
    printed = Printed.of(text)
    assert printed.value == value
    assert printed.range == (Decimal(low), Decimal(high))


@pytest.mark.parametrize("text", ["", "K", "2.2G", "nan", "-1", "0", "1KM", "inf"])
def test_what_is_no_printed_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="printed number"):
        Printed.of(text)


def test_every_row_is_read_as_printed() -> None:
    file = resources.files("secateur.study") / "results.csv"
    lines = file.read_text(encoding="utf-8").splitlines()[1:]
    rows = published_rows()
    assert len(rows) == len(lines) == 66
    for row, line in zip(rows, lines, strict=True):
        numbers = (row.top1_percent, row.parameters, row.compression_rate, row.size_mb,
                   row.latency_ms)  # fmt: skip
        again = [str(row.table), row.source, row.dataset, row.network, row.variant]
        assert ",".join([*again, *(number.text if number else "" for number in numbers)]) == line


def test_every_network_has_a_threshold_that_its_recipe_prunes_to() -> None:
    found = thresholds()
    assert set(found) == {(dataset, network) for dataset in DATASETS for network in NETWORKS}
    for (dataset, network), fraction in found.items():
        assert published_recipe(dataset, network).prune.fraction == fraction


def where(found: Contradiction) -> tuple[str, tuple[int, ...], str, str, str]:
    row = found.rows[0]
    return found.source, found.tables, row.dataset, row.network, found.kind


def test_contradictions_are_those_that_are_known() -> None:
    assert {where(found) for found in contradictions()} == {
        ("paper", (1,), "cifar10", "mobilenet_v2", "compression_rate"),
        ("report", (2,), "cifar10", "mobilenet_v2", "compression_rate"),
        ("report", (2,), "fashionmnist", "mobilenet_v2", "compression_rate"),
        ("report", (2, 4), "cifar10", "shufflenet_v2_x1_0", "reference_accuracy"),
        ("paper", (3,), "cifar10", "alexnet", "quantized_size"),
        ("paper", (3,), "fashionmnist", "alexnet", "quantized_size"),
        ("report", (4,), "cifar10", "alexnet", "quantized_size"),
        ("report", (4,), "fashionmnist", "alexnet", "quantized_size"),
    }
    assert len(contradictions()) == 8


@pytest.mark.parametrize(
    "said",
    [
        "Paper, Table 1, MobileNetV2 on CIFAR-10, pruned: prints a compression rate of 1.6; "
        "2.2M over 671K parameters is 3.20 to 3.36.",
        "Report, Tables 2 and 4, ShuffleNetV2 on CIFAR-10, reference: prints 84.94 % and 84.97 %; "
        "one network has one reference accuracy.",
        "Paper, Table 3, AlexNet on CIFAR-10, quantized: prints 54.6 MB for the quantized pruned "
        "network; at one byte each that is its 57M unpruned parameters (53.9 to 54.8 MiB), not the "
        "28M that pruning leaves (26.2 to 27.2 MiB).",
    ],
)
def test_a_contradiction_says_what_follows(said: str) -> None:
    assert said in map(str, contradictions())


def changed(table: int, variant: str, **fields: str) -> list[PublishedRow]:
    """MobileNetV2 on FashionMNIST in one table, of which a row prints otherwise."""
    rows = [r for r in published_rows() if (r.table, r.dataset, r.network) ==
            (table, "fashionmnist", "mobilenet_v2")]  # fmt: skip
    new = {key: Printed.of(text) for key, text in fields.items()}
    return [replace(row, **new) if row.variant == variant else row for row in rows]


@pytest.mark.parametrize(
    ("rate", "contradicts"),
    [("2", False), ("1.9", False), ("2.1", False), ("2.2", True), ("1.8", True), ("3", True)],
)
def test_rounding_explains_what_it_can(rate: str, contradicts: bool) -> None:
    # 2.2M over 1.1M is anything from 2.15 / 1.15 = 1.87 to 2.25 / 1.05 = 2.14.
    found = contradictions(changed(1, "pruned", compression_rate=rate))
    assert [c.kind for c in found] == ["compression_rate"] * contradicts


def test_one_accuracy_with_fewer_digits_is_the_same() -> None:
    rows = changed(1, "reference", top1_percent="90.75")
    same, other = (changed(3, "reference", top1_percent=text) for text in ("90.8", "90.6"))
    assert contradictions(rows + same) == []
    assert [c.kind for c in contradictions(rows + other)] == ["reference_accuracy"]


def test_a_size_of_what_pruning_leaves_is_no_contradiction() -> None:
    rows = changed(1, "pruned")
    for size, kinds in (("1.1", []), ("2.2", ["quantized_size"]), ("2.1", ["quantized_size"]),
                        ("2.9", [])):  # fmt: skip
        found = contradictions(rows + changed(3, "quantized", size_mb=size))
        assert [c.kind for c in found] == kinds, size
    # 2.15 MB may be a byte for each of 2.2M, and for each of the 2.1M that are left.
    rows = changed(1, "pruned", parameters="2.1M", compression_rate="1")
    assert contradictions(rows + changed(3, "quantized", size_mb="2.15")) == []


def test_networks_have_one_name_and_recipes_omit_the_width() -> None:
    for network, dataset in product(NETWORKS, DATASETS):
        name = recipe_name(network, dataset, "paper")
        assert "_x1_0" not in name
        assert load_recipe(name).network.name == network
