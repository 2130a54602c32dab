"""Ways to prune and quantize that a recipe can ask for, taken down the chain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.artifact.packing import unpack
from secateur.benchmarking.cost import macs, parameters
from secateur.errors import RecipeError
from secateur.onnx_ir.model import Graph, read_model
from secateur.pipeline import Chain, open_chain
from secateur.pipeline.stages import stage_definitions
from secateur.pipeline.to_records import to_records
from secateur.quantization.pricing import PRICES
from secateur.quantization.qdq import read_scheme
from secateur.quantization.rate import priced_layers
from secateur.recipe import load_recipe
from secateur.store import Store

MOBILENET = ("network.name=mobilenet_v2", "train.epochs=1", "prune.round_to=1", "prune.rounds=1")


def pipeline(recipe_file: Path, images: Path, out: Path, *sets: str) -> Chain:
    recipe = load_recipe(str(recipe_file), list(sets))
    return open_chain(recipe, Store(out), images, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sets",
    [
        ("prune.importance=taylor", "prune.rounds=2", "prune.schedule=cubic", "prune.fraction=0.4"),
        ("prune.scope=sensitivity", "prune.retrain=reinit", "prune.fraction=0.4"),
    ],
)
def test_a_fraction_of_the_channels_goes(
    recipe_file: Path, image_folder: Path, tmp_path: Path, sets: tuple[str, ...]
) -> None:
    chain = pipeline(recipe_file, image_folder, tmp_path / "out", *MOBILENET, *sets)
    smaller = chain.load_network("remove")
    assert 0.2 < parameters(smaller) / parameters(chain.fresh_network()) < 0.7
    assert smaller(torch.zeros(1, *chain.input_shape)).shape == (1, 2)


def test_a_round_that_removes_nothing_prints_why(
    recipe_file: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ('prune.keep=["*"]', "prune.fraction=0.3")
    pipeline(recipe_file, image_folder, tmp_path / "out", *MOBILENET, *sets).stage("prune-1")
    printed = capsys.readouterr().err
    assert "warning  prune-1: 0 of " in printed
    assert "the options keep it" in printed


def test_the_target_is_of_the_trained_network(
    recipe_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    sets = ("prune.objective=macs", "prune.target=0.5")
    chain = pipeline(recipe_file, image_folder, tmp_path / "out", *MOBILENET, *sets)
    smaller, whole = chain.load_network(chain.rounds[-1]), chain.fresh_network()
    share = macs(smaller, chain.input_shape) / macs(whole, chain.input_shape)
    assert 0.45 < share <= 0.5


TEACHER = ("teacher.widths=[8, 8, 8]", "teacher.train.epochs=1", "teacher.train.learning_rate=0.1")


@pytest.mark.slow
def test_one_teacher_teaches_references_and_pruned_networks_of_every_seed(
    recipe_file: Path, image_folder: Path, tmp_path: Path
) -> None:
    taught = ("train.distill=0.5", "train.shards=2", "prune.distill=0.5", "prune.teacher=teacher")
    start = ("train.epochs=2", "train.start.fraction=0.5", "train.start.stem=stride1")
    sets = (*TEACHER, *taught, *start, "prune.fraction=0.5", "train.learning_rate=0.001")
    first = pipeline(recipe_file, image_folder, tmp_path / "out", *sets, "seed=0")
    other = pipeline(recipe_file, image_folder, tmp_path / "out", *sets, "seed=1")
    teacher = first.stage("teacher")
    taught_stages = (first.stage("train"), other.stage("train"), first.stage("prune-1"))
    assert {stage.manifest["upstream"]["teacher"] for stage in taught_stages} == {teacher.id}
    assert taught_stages[0].id != taught_stages[1].id
    epochs = [r for r in to_records(first, "train") if r.metric == "epoch_seconds"]
    assert [record.variant for record in epochs] == ["teacher", "reference", "reference"]
    assert not list(teacher.folder.glob("checkpoint*"))


def test_a_teacher_that_nobody_asks_is_not_trained(recipe_file: Path) -> None:
    for sets, expected in (((), False), (("prune.distill=0.5", "prune.teacher=teacher"), True)):
        recipe = load_recipe(str(recipe_file), [*TEACHER, *sets])
        names = [definition.name for definition in stage_definitions(recipe)]
        assert ("teacher" in names) == expected


def integers(chain: Chain) -> dict[str, np.ndarray]:
    """The weights of the file that ships."""
    model = read_model(chain.stage("quantize").folder / "float.onnx")
    scheme = read_scheme(model, chain.file("quantized"))
    return {name: layer.integers for name, layer in scheme.layers.items()}


def check_prices(quantized: Callable[..., Chain]) -> None:
    """A price for bits, and one small file."""
    plain = quantized("price=100")
    trained = quantized("price=100", "epochs=1", "learning_rate=0.05")
    before, after = integers(plain), integers(trained)
    zeros = sum(int((layer == 0).sum()) for layer in before.values())
    assert zeros > 0.2 * sum(layer.size for layer in before.values())
    graph = Graph(read_model(plain.stage("quantize").folder / "float.onnx"))
    for name in priced_layers(graph):
        assert not after[name][before[name] == 0].any()  # what costs nothing goes on so

    unpacked = unpack(plain.packed_file.read_bytes())
    assert unpacked.onnx == plain.file("quantized").read_bytes()
    assert unpacked.about["recipe"]["quantize"]["price"] == 100
    assert unpacked.about["accuracy"]["images"] == 12
    assert unpacked.about["data"]["name"] == "folder"
    records = {(r.variant, r.metric): r for r in to_records(plain)}
    packed, dense = (records[v, "size_bytes"].value for v in ("packed", "quantized"))
    assert packed == plain.packed_file.stat().st_size < 0.5 * dense
    assert records["packed", "top1_percent"].at == {"decoded_to": "quantized"}
    assert records["packed", "top1_percent"].value == records["quantized", "top1_percent"].value

    assert trained.file("quantized").read_bytes() != unpacked.onnx

    found = quantized("price=auto", "tolerance=99")
    assert found.stage("quantize").json("chosen.json")["price"]["price"] == PRICES[-1]


@pytest.mark.slow
def test_ways_to_quantize(recipe_file: Path, image_folder: Path, tmp_path: Path) -> None:
    """All from one trained network: the stages before quantization are reused."""

    def quantized(*sets: str) -> Chain:
        short = ("train.epochs=1", "prune.rounds=1", *(f"quantize.{value}" for value in sets))
        return pipeline(recipe_file, image_folder, tmp_path / "out", *short)

    plain = quantized()
    assert max(np.abs(layer).max() for layer in integers(plain).values()) > 64

    automatic = quantized("method=auto", "equalize=true", "per_channel=false")
    assert set(automatic.stage("quantize").json("chosen.json")["method_loss"]) == {
        "minmax", "percentile", "mse", "entropy",
    }  # fmt: skip
    graph = Graph(read_model(automatic.file("quantized")))
    scales = [t for name, t in graph.constants.items() if name.endswith("/weight/scale")]
    assert scales
    assert all(tuple(scale.dims) == () for scale in scales)

    mixed = quantized("bits=mixed", "size=0.5")
    bits = mixed.stage("quantize").json("bits.json")
    weights = {name: layer.size for name, layer in integers(mixed).items()}
    total = sum(bits[name] * count for name, count in weights.items())
    assert 0.3 < total / (8 * sum(weights.values())) <= 0.5
    for name, layer in integers(mixed).items():
        assert np.abs(layer).max() <= 2 ** (bits[name] - 1) - 1

    trained = quantized("bits=4", "epochs=1")
    assert trained.file("quantized").parent == trained.stage("quantize-train").folder
    assert max(np.abs(layer).max() for layer in integers(trained).values()) == 7
    records = to_records(trained)
    (parity,) = (record for record in records if record.metric == "parity_percent")
    assert parity.n == 12
    assert parity.value >= 90
    assert {"quantize", "quantize-train"} <= {record.at.get("stage") for record in records}

    check_prices(quantized)


def test_a_size_without_mixed_bits_is_refused(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match="mixed"):
        load_recipe(str(recipe_file), ["quantize.size=0.5"])
