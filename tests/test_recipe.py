from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from secateur.errors import RecipeError
from secateur.recipe import Augment, Part, Recipe, builtin_recipes, load_recipe, parse_recipe
from secateur.recipe.reference_table import nested_part, recipe_tables


def test_four_presets_for_each_network_and_data_set_and_overfitting() -> None:
    expected = {
        f"{network}-{dataset}-{preset}"
        for network in ("mobilenet_v2", "shufflenet_v2", "alexnet")
        for dataset in ("cifar10", "fashionmnist")
        for preset in ("paper", "accurate", "fast", "quick")
    } | {"quickstart", "mobilenet_v2-imagenet-paper"}
    networks = ("mobilenet_v2", "shufflenet_v2", "alexnet")
    expected |= {f"overfit-{n}-fashionmnist-{size}" for n in networks for size in ("quick", "full")}
    assert set(builtin_recipes()) == expected


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipe_is_what_its_name_says(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    if name != "quickstart":
        network, dataset, preset = name.removeprefix("overfit-").split("-")
        assert recipe.network.name.startswith(network)
        dataset = dataset.replace("imagenet", "shards")
        assert (recipe.data.name, recipe.preset) == (dataset, preset.replace("full", "quick"))


@pytest.mark.parametrize("name", [n for n in builtin_recipes() if n.startswith("overfit-")])
def test_nothing_keeps_a_network_from_overfitting(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.network.dropout, recipe.network.batch_norm) == (False, "identity")
    train = recipe.train
    assert train.augment == Augment()
    assert (train.until, train.weight_decay, train.label_smoothing, train.ema) == (100, 0, 0, 0)
    assert (recipe.prune.distill, recipe.prune.rounds, recipe.prune.importance) == (0, 1, "l2")


def test_ids_are_pinned() -> None:
    # A new field with a neutral default must not rename old results.
    assert load_recipe("quickstart").id == "a31b5976f941"
    assert load_recipe("shufflenet_v2-fashionmnist-paper").id == "5b66579b44c7"


def test_id_depends_on_what_decides_the_result_alone() -> None:
    recipe = load_recipe("quickstart")
    assert load_recipe("quickstart", ["description=other"]).id == recipe.id
    assert load_recipe("quickstart", ["train.epochs=3"]).id != recipe.id
    assert load_recipe("quickstart", seed=1).id != recipe.id
    # Said or left at its default is the same thing.
    assert load_recipe("quickstart", ["train.momentum=0.9"]).id == recipe.id


def test_toml_round_trip() -> None:
    recipe = load_recipe("mobilenet_v2-cifar10-fast", ["prune.fraction=0.5"])
    assert parse_recipe(recipe.to_toml(), "here") == recipe


def test_override_takes_numbers_lists_and_bare_words() -> None:
    recipe = load_recipe(
        "quickstart",
        ["train.epochs=3", "scan.fractions=[0.1, 0.2]", "prune.retrain=reinit", "seed=7"],
    )
    assert recipe.train.epochs == 3
    assert recipe.scan.fractions == (0.1, 0.2)
    assert recipe.prune.retrain == "reinit"
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.epoch=3", ["unknown recipe key", "train.epoch", "'epochs'"]),
        ("dat.name=x", ["unknown recipe key", "dat", "'data'"]),
        ("train.epochs=three", ["train.epochs", "valid integer", "'three'"]),
        ("train.epochs=0", ["train.epochs", "greater than or equal to 1", "found 0"]),
        ("prune.fraction=1.5", ["prune.fraction", "less than 1", "1.5"]),
        ("network.name=resnet", ["network.name", "'mobilenet_v2'", "'resnet'"]),
        ("train=3", ["train", "found 3"]),
        ("seed.x=3", ["--set", "seed"]),
        ("nothing", ["--set", "key=value", "'nothing'"]),
    ],
)
def test_a_wrong_override_is_one_line_that_names_key_and_remedy(
    override: str, parts: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", ["seed=1", override])
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_unreadable_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        load_recipe("quickstrat")
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(RecipeError, match="not a TOML file"):
        load_recipe(str(broken))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(str(binary))
    empty = tmp_path / "empty.toml"
    empty.write_text('name = "x"')
    with pytest.raises(RecipeError, match=r"recipe key data .* found nothing"):
        load_recipe(str(empty))


def _parts(part: type[Part] = Recipe) -> list[type[Part]]:
    inner = [
        nested for info in part.model_fields.values() if (nested := nested_part(info.annotation))
    ]
    return [part, *(deeper for nested in inner for deeper in _parts(nested))]


@pytest.mark.parametrize("part", _parts(), ids=lambda part: part.__name__)
def test_every_field_has_a_description_of_one_sentence_or_two(part: type[Part]) -> None:
    for name, info in part.model_fields.items():
        assert info.description, f"{part.__name__}.{name} has no Field(description=...)"
        assert info.description.endswith("."), f"{part.__name__}.{name}"
        assert "\n" not in info.description
        assert len(info.description) <= 160, f"{part.__name__}.{name}: {len(info.description)}"


def test_fields_are_listed_with_range_and_default() -> None:
    fields = {field.key: field for table in recipe_tables() for field in table.fields}
    assert fields["train.epochs"].default == "required"
    assert fields["train.epochs"].values == "integer ≥ 1"
    assert fields["train.augment.crop"].values == "integer ≥ 0, ≤ 32"
    assert fields["prune.fraction"].values == 'number ≥ 0, < 1 or `"scan"`'
    assert fields["prune.target"].default == "none"
    assert fields["quantize.bits"].default == "8"


@pytest.mark.parametrize("override", ["train.distill=0.5", "prune.teacher=teacher"])
def test_distillation_from_a_teacher_needs_one(override: str) -> None:
    with pytest.raises(RecipeError, match=r"a \[teacher\] table"):
        load_recipe("quickstart", [override])
    teacher = ["teacher.train.epochs=1", "teacher.train.learning_rate=1.0"]
    assert load_recipe("quickstart", [*teacher, override]).teacher is not None


@pytest.mark.parametrize(
    "override", ["teacher.train.distill=0.5", "teacher.train.start.fraction=0.5"]
)
def test_a_teacher_is_not_taught_and_has_one_geometry(override: str) -> None:
    with pytest.raises(RecipeError, match="without distill and without start"):
        load_recipe("alexnet-cifar10-accurate", [override])


def test_all_accurate_recipes_of_a_data_set_share_the_teacher() -> None:
    for dataset in ("cifar10", "fashionmnist"):
        recipes = [
            load_recipe(f"{network}-{dataset}-accurate")
            for network in ("mobilenet_v2", "shufflenet_v2", "alexnet")
        ]
        assert len({recipe.teacher for recipe in recipes}) == 1
        assert len({recipe.data for recipe in recipes}) == 1


def _numbers(part: type[BaseModel], path: str = "") -> Iterator[str]:
    """Dotted keys of every recipe field that may hold a float."""
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _numbers(field.annotation, f"{path}{name}.")
        elif "float" in repr(field.annotation):
            yield f"{path}{name}"


@pytest.mark.parametrize("key", list(_numbers(Recipe)))
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_number_may_be_infinite(key: str, value: str) -> None:
    many = "tuple" in repr(_field(key))
    with pytest.raises(RecipeError, match=key.split(".")[-1]):
        load_recipe("quickstart", [f"{key}={f'[{value}]' if many else value}"])


def _field(key: str) -> object:
    part: Any = Recipe
    for name in key.split("."):
        part = part.model_fields[name].annotation
    return part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"seed = {'9' * 5000}", "not a TOML file"),
        (f"seed = 0x{'f' * 5000}", "a number out of range"),
        ("train = { learning_rate = 1e300 }", "a number out of range"),
        (f"description = {'[' * 5000}{']' * 5000}", "not a TOML file"),
        (f"{'.'.join('a' * 3000)} = 1", "too deeply nested"),
        (f"description = {'[' * 50}{']' * 50}", "too deeply nested"),
        (f'name = "{"n" * 300}"', "at most 100 characters"),
        ("name = 'x'\x00", "not a TOML file"),
    ],
)
def test_odd_recipes_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "odd.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(tmp_path / "odd.toml"))


def test_a_recipe_that_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    (tmp_path / "large.toml").write_text("#" * 2**21)
    (tmp_path / "latin.toml").write_bytes(b"name = '\xff'")
    for name, message in (("fifo", "a FIFO"), ("large", "larger"), ("latin", "can't decode")):
        with pytest.raises(RecipeError, match=message):
            load_recipe(str(tmp_path / f"{name}.toml"))
