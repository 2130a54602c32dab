"""What a run, a stage or a file is, in a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
from safetensors import SafetensorError, safe_open

from secateur.artifact.container import read_sections
from secateur.artifact.packing import TAGS, read_about
from secateur.errors import SecateurError
from secateur.recipe import load_recipe
from secateur.records import read_records
from secateur.store import MANIFEST


def describe(path: Path) -> Iterator[str]:
    """Yield lines that say what ``path`` is and what it holds.

    Args:
        path: A run's or a stage's folder, or a file ending in .toml, .jsonl, .json, .safetensors,
            .onnx or .sec.

    Raises:
        SecateurError: There is no such path, it is damaged, or it is nothing that Secateur wrote.
    """
    if (path / MANIFEST).is_file():
        yield from _stage(path)
    elif (path / "records.jsonl").is_file():
        yield from _run(path)
    elif path.is_file() and path.suffix in _FILES:
        yield f"{path.name}: {path.stat().st_size:,} bytes"
        yield from _FILES[path.suffix](path)
    else:
        raise SecateurError(
            "nothing to show",
            where=path,
            expected=f"a run, a stage, or a file ending in {', '.join(_FILES)}",
            found="no such path" if not path.exists() else "something else",
        )


def describe_groups(recipe: str, overrides: list[str] | None) -> Iterator[str]:
    """Yield lines that say which channels of a recipe's network can go, and which stay and why.

    Args:
        recipe: A built-in recipe's name or a path to a TOML file; no data and no weights are read.
        overrides: ``key=value`` pairs that change the recipe.

    Raises:
        SecateurError: The recipe is wrong, or its network cannot be followed.
    """
    import torch

    from secateur.models.build import build_network
    from secateur.pruning.find import find_prunable

    config = load_recipe(recipe, overrides)
    channels = 1 if config.data.name.startswith("fashionmnist") else 3
    side = config.network.resolution
    network = build_network(config.network, channels, 10)
    found = find_prunable(network, torch.zeros(1, channels, side, side))
    for group in found.groups:
        head, *lines = str(group).splitlines()
        even = f", in {group.steps} even steps" if group.balanced else ""
        yield head + even
        yield from (f"  {line}" for line in lines)
    for layer in found.protected:
        yield f"{layer.name}: stays, {layer.reason}"


def _stage(folder: Path) -> Iterator[str]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        yield f"stage {manifest['stage']} {manifest['id']}, made in {manifest['seconds']} s"
        yield f"  on {manifest['processor']}, commit {manifest['commit']}"
        yield f"  says {json.dumps(manifest['says'])}"
        for name, identity in manifest["upstream"].items():
            yield f"  reads {name} {identity}"
        for name in manifest["files"]:
            yield f"  file {name}: {(folder / name).stat().st_size:,} bytes"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SecateurError("damaged manifest", where=folder / MANIFEST, found=error) from error


def _run(folder: Path) -> Iterator[str]:
    yield from _recipe(folder / "recipe.toml")
    yield from _records(folder / "records.jsonl")


def _recipe(path: Path) -> Iterator[str]:
    recipe = load_recipe(str(path))
    yield f"recipe {recipe.name} {recipe.id}: {recipe.description}"
    yield f"  {recipe.network.name} {recipe.geometry} on {recipe.data.name}, seed {recipe.seed}"


def _records(path: Path) -> Iterator[str]:
    records = read_records(path)
    yield f"{len(records)} records"
    for record in records:
        if record.at and record.metric not in ("top1_drop_points", "threshold_fraction"):
            continue  # a point of a curve: the report shows those
        bounds = "" if record.low is None else f"  [{record.low:.6g}, {record.high:.6g}]"
        yield f"  {record.variant:<10} {record.metric:<20} {record.value:.8g}{bounds}  n={record.n}"


def _tensors(path: Path) -> Iterator[str]:
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            yield f"{len(names)} tensors"
            for name in names:
                part = file.get_slice(name)
                yield f"  {name}: {part.get_dtype()} {part.get_shape()}"
    except SafetensorError as error:
        raise SecateurError("damaged file", where=path, found=error) from error


def _packed(path: Path) -> Iterator[str]:
    sections = read_sections(path.read_bytes(), TAGS)
    for tag, section in sections.items():
        yield f"  {tag}: {len(section.stored):,} bytes, {section.size:,} once unpacked"
    for key, value in read_about(sections).items():
        yield f"  {key}: {json.dumps(value, ensure_ascii=False)}"


def _onnx(path: Path) -> Iterator[str]:
    screen(path)
    model = parse(read_bytes(path, MOST_BYTES), path)
    for end, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            sides = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            yield f"  {end} {value.name}: {sides}"
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    yield "  nodes " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))
    for entry in model.metadata_props:
        yield f"  {entry.key}: {entry.value}"


def _json(path: Path) -> Iterator[str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SecateurError("not a JSON file", where=path, found=error) from error
    yield f"  {type(value).__name__} of {len(value)} entries" if hasattr(value, "__len__") else ""


_FILES = {
    ".toml": _recipe,
    ".jsonl": _records,
    ".json": _json,
    ".safetensors": _tensors,
    ".onnx": _onnx,
    ".sec": _packed,
}
