"""Turns command-line arguments into inputs and settings, and runs the compression."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from secateur.compression.api import Result, plan, run
from secateur.compression.inputs import Inputs, read_problem
from secateur.compression.settings import Settings, parse_quantity
from secateur.environment import choose_device
from secateur.errors import RecipeError
from secateur.models.weight_files import SUFFIXES
from secateur.recipe import read_toml
from secateur.training.cpu import keep_freed_memory


@dataclass(frozen=True)
class Arguments:
    """Command-line arguments; None and empty strings leave a setting unchanged."""

    network: str = ""
    description: str = ""
    weights: Path | None = None
    data: Path | None = None
    max_drop: float | None = None
    target: str | None = None
    latency: str | None = None
    size: str | None = None
    within: str | None = None
    epochs: int | None = None
    image_size: int | None = None
    resize: int | None = None
    mean: str = ""
    std: str = ""
    threads: int | None = None
    seed: int | None = None
    merge: bool | None = None
    device: str = "auto"


def compress_command(arguments: Arguments, out: Path) -> Result:
    """Run ``secateur compress``.

    Raises:
        SecateurError: One line that says what is wrong and what to try.
    """
    keep_freed_memory()
    inputs, settings = resolve(arguments)
    problem = read_problem(inputs, choose_device(arguments.device))
    return run(problem, settings, inputs, out)


def plan_command(arguments: Arguments, out: Path) -> None:
    """Check and print what :func:`compress_command` would do.

    Raises:
        SecateurError: One line that says what is wrong and what to try.
    """
    inputs, settings = resolve(arguments)
    plan(read_problem(inputs, choose_device(arguments.device)), settings, out)


def resolve(arguments: Arguments) -> tuple[Inputs, Settings]:
    """Return inputs and settings of a command line, which override those of a recipe.

    Raises:
        RecipeError: Arguments are invalid or contradict each other.
    """
    recipe: dict[str, Any] = {}
    if arguments.network.endswith(".toml"):
        _, recipe = read_toml(Path(arguments.network))
    inputs = recipe.pop("inputs", {}) | _inputs(arguments)
    settings = recipe
    if not recipe and not inputs:
        settings = {"tune": {"epochs": 2}, "tries": 3, "smallest": 0.4}  # under three minutes
    for part, key, value in _settings(arguments):
        target = settings.setdefault(part, {}) if part else settings
        target[key] = value
    if arguments.size and not (arguments.target or arguments.latency):
        settings["goal"]["target"] = "size"
    try:
        checked = Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecipeError(first["msg"], where=where, found=first["input"]) from error
    unknown = set(inputs) - {field.name for field in fields(Inputs)}
    if unknown:
        raise RecipeError("unknown input", where=arguments.network, found=", ".join(unknown))
    paths = {key: Path(inputs[key]) for key in ("weights", "data") if inputs.get(key)}
    triples = {key: tuple(inputs[key]) for key in ("mean", "std") if inputs.get(key)}
    return Inputs(**(inputs | paths | triples | {"seed": checked.seed})), checked


def _inputs(arguments: Arguments) -> dict[str, Any]:
    network, weights = arguments.network, arguments.weights
    if network.endswith(".toml"):
        network = ""
    if network.endswith(SUFFIXES):
        if weights is not None or not arguments.description:
            raise RecipeError(
                "weights need the network that they are of", where=network,
                remedy="give --network, such as torchvision:resnet18",
            )  # fmt: skip
        network, weights = arguments.description, Path(network)
    elif arguments.description:
        raise RecipeError("two networks", found=f"{network} and --network {arguments.description}")
    named = {
        "network": network, "weights": weights, "data": arguments.data,
        "image_size": arguments.image_size, "resize": arguments.resize,
        "mean": _numbers(arguments.mean, "--mean"), "std": _numbers(arguments.std, "--std"),
    }  # fmt: skip
    return {key: value for key, value in named.items() if value}


def _settings(arguments: Arguments) -> list[tuple[str, str, Any]]:
    """Yield part, key and value of each setting in the command line."""
    latency, size, within = arguments.latency, arguments.size, arguments.within
    rows = [
        ("goal", "max_drop", arguments.max_drop),
        ("goal", "target", arguments.target),
        ("goal", "latency_ms", parse_quantity(latency, "latency") if latency else None),
        ("goal", "size_bytes", int(parse_quantity(size, "size")) if size else None),
        ("goal", "within_seconds", parse_quantity(within, "time") if within else None),
        ("tune", "epochs", arguments.epochs),
        ("bench", "threads", arguments.threads),
        ("", "seed", arguments.seed),
        ("", "merge", arguments.merge),
    ]
    return [row for row in rows if row[2] is not None]


def _numbers(text: str, where: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise RecipeError("not numbers", where=where, expected="0.5,0.5,0.5", found=text) from error
