"""Descriptions of runs, stages and files in a few lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnx import TensorShapeProto, ValueInfoProto
from rich.table import Table
from safetensors import SafetensorError, safe_open

from secateur.artifact.container import read_sections
from secateur.artifact.packing import TAGS, read_about
from secateur.artifact.screening import screen
from secateur.console import table
from secateur.disk import read_bytes
from secateur.errors import FileError, SecateurError, UsageError
from secateur.onnx_ir.reader import MOST_BYTES, parse
from secateur.recipe import load_recipe
from secateur.records import read_records
from secateur.store import MANIFEST

Parts = Iterator[str | Table]


def describe(path: Path) -> Parts:
    """Yield lines and tables that describe ``path`` and its content.

    Args:
        path: A run's or a stage's folder, or a file ending in .toml, .jsonl, .json, .safetensors,
            .onnx or .sec.

    Raises:
        SecateurError: The path does not exist, is damaged, or was not written by Secateur.
    """
    if (path / MANIFEST).is_file():
        yield from _stage(path)
    elif (path / "records.jsonl").is_file():
        yield from _run(path)
    elif path.is_file() and path.suffix in _FILES:
        yield f"{path.name}: {path.stat().st_size:,} bytes"
        yield from _FILES[path.suffix](path)
    else:
        raise UsageError(
            "nothing to show",
            where=path,
            expected=f"a run, a stage, or a file ending in {', '.join(_FILES)}",
            found="no such path" if not path.exists() else "something else",
        )


def describe_groups(recipe: str, overrides: list[str] | None) -> Iterator[str]:
    """Yield lines that list the removable channels of a recipe's network, and why others are kept.

    Args:
        recipe: A built-in recipe's name or a path to a TOML file; neither data nor weights are
            read.
        overrides: ``key=value`` pairs that change the recipe.

    Raises:
        SecateurError: The recipe is invalid, or its network cannot be traced.
    """
    import torch

    from secateur.data import geometry
    from secateur.models.build import build_network
    from secateur.pruning.find import find_prunable

    config = load_recipe(recipe, overrides)
    channels = geometry(config.data, config.network.resolution).channels
    side = config.network.resolution
    network = build_network(config.network, channels, 10)
    prunable = find_prunable(network, torch.zeros(1, channels, side, side))
    for group in prunable.groups:
        head, *lines = str(group).splitlines()
        even = f", in {group.steps} even steps" if group.balanced else ""
        yield head + even
        yield from (f"  {line}" for line in lines)
    for layer in prunable.protected:
        yield f"{layer.name}: stays, {layer.reason}"


def _stage(folder: Path) -> Parts:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        yield f"stage {manifest['stage']} {manifest['id']}, made in {manifest['seconds']} s"
        facts = {
            "processor": manifest["processor"],
            "threads": manifest["threads"],
            "commit": manifest["commit"],
            "settings": json.dumps(manifest["says"]),
        }
        facts |= {f"reads {name}": identity for name, identity in manifest["upstream"].items()}
        yield table(("", ""), facts.items())
        sizes = [(name, f"{(folder / name).stat().st_size:,}") for name in manifest["files"]]
        yield table(("file", "bytes"), sizes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SecateurError("damaged manifest", where=folder / MANIFEST, found=error) from error


def _run(folder: Path) -> Parts:
    yield from _recipe(folder / "recipe.toml")
    yield from _records(folder / "records.jsonl")


def _recipe(path: Path) -> Parts:
    recipe = load_recipe(str(path))
    yield f"recipe {recipe.name} {recipe.id}: {recipe.description}"
    yield f"  {recipe.network.name} {recipe.geometry} on {recipe.data.name}, seed {recipe.seed}"


def _records(path: Path) -> Parts:
    records = read_records(path)
    yield f"{len(records)} records"
    shown = [  # points of curves are shown in the report only
        record
        for record in records
        if not record.at or record.metric in ("top1_drop_points", "threshold_fraction")
    ]
    yield table(
        ("variant", "metric", "value", "low", "high", "n"),
        (
            (r.variant, r.metric, f"{r.value:.8g}", _bound(r.low), _bound(r.high), f"{r.n:,}")
            for r in shown
        ),
    )


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _tensors(path: Path) -> Parts:
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            yield f"{len(names)} tensors"
            parts = [(name, file.get_slice(name)) for name in names]
            rows = [(name, part.get_dtype(), part.get_shape()) for name, part in parts]
    except SafetensorError as error:
        raise FileError("damaged file", where=path, found=error) from error
    yield table(("tensor", "type", "shape"), rows)


def _packed(path: Path) -> Parts:
    sections = read_sections(read_bytes(path, MOST_BYTES), TAGS)
    sizes = [(tag, f"{len(part.stored):,}", f"{part.size:,}") for tag, part in sections.items()]
    yield table(("section", "bytes", "unpacked"), sizes)
    about = read_about(sections).items()
    yield table(("", ""), ((key, json.dumps(value, ensure_ascii=False)) for key, value in about))


def _onnx(path: Path) -> Parts:
    screen(path)
    model = parse(read_bytes(path, MOST_BYTES), path)
    yield table(
        ("", "name", "shape"),
        (
            (end, value.name, [d.dim_param or d.dim_value for d in _sides(value)])
            for end, values in (("input", model.graph.input), ("output", model.graph.output))
            for value in values
        ),
    )
    counts = Counter(node.op_type for node in model.graph.node)
    yield table(("operator", "nodes"), sorted(counts.items()))
    yield table(("metadata", ""), ((entry.key, entry.value) for entry in model.metadata_props))


def _sides(value: ValueInfoProto) -> Iterable[TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


def _json(path: Path) -> Parts:
    try:
        value = json.loads(read_bytes(path, MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise FileError("not a JSON file", where=path, found=error) from error
    yield f"  {type(value).__name__} of {len(value)} entries" if hasattr(value, "__len__") else ""


_FILES = {
    ".toml": _recipe,
    ".jsonl": _records,
    ".json": _json,
    ".safetensors": _tensors,
    ".onnx": _onnx,
    ".sec": _packed,
}
