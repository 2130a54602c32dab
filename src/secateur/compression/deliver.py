"""Writes the output folder: files to deploy, a page, and a recipe to repeat the run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined

from secateur.artifact.packing import pack
from secateur.compression.candidate import Measured
from secateur.compression.candidate_stages import Stages
from secateur.compression.final import Final
from secateur.compression.inputs import Inputs
from secateur.compression.loaders import Prepared
from secateur.compression.settings import Settings
from secateur.data import Preparation
from secateur.imaging import in_words, python_source
from secateur.store import write_bytes, write_text


def deliver(
    out: Path,
    stages: Stages,
    inputs: Inputs,
    settings: Settings,
    tried: Sequence[Measured],
    chosen: Measured,
    final: Final,
) -> None:
    """Write curve.csv, recipe.toml, README.md and run_python.py into ``out``, beside the network.

    There is no run_python.py if the image preparation is not known, as with a user's loaders.
    """
    write_text(out / "curve.csv", curve(tried, chosen))
    write_text(out / "recipe.toml", recipe_toml(inputs, settings))
    values = _values(out, stages, final)
    templates = Environment(
        loader=PackageLoader("secateur.compression"),
        autoescape=False,  # noqa: S701 Markdown and Python, no HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    for name in ("README.md", "run_python.py")[: 2 if values["known"] else 1]:
        write_text(out / name, templates.get_template(f"{name}.j2").render(values))


def _values(out: Path, stages: Stages, final: Final) -> dict[str, Any]:
    """Values for the templates."""
    problem = stages.problem
    prepare: Any = problem.prepare
    known: Preparation | None = prepare.known if isinstance(prepare, Prepared) else prepare
    values: dict[str, Any] = {
        "name": problem.name,
        "verdict": str(final.verdict),
        "summary": final.summary,
        "onnx_bytes": (out / "net.onnx").stat().st_size,
        "packed_bytes": (out / "net.sec").stat().st_size,
        "channels": problem.input_shape[0],
        "side": problem.prepare.resolution,
        "classes": problem.classes,
        "known": known is not None,
    }
    if known is not None:
        values |= {"prepare_source": python_source(known), "steps": in_words(known)}
    return values


def write_network(out: Path, stages: Stages, chosen: Measured, final: Final) -> int:
    """Write net.onnx and net.sec with its accuracy into ``out``; return the size of net.sec."""
    assert chosen.folder is not None
    content = (chosen.folder / "net.onnx").read_bytes()
    packed = pack(content, stages.provenance(chosen.candidate) | {"accuracy": _accuracy(final)})
    write_bytes(out / "net.onnx", content)
    write_bytes(out / "net.sec", packed)
    return len(packed)


def _accuracy(final: Final) -> dict[str, Any]:
    right = final.right["net"]
    return {
        "correct": int(right.sum()),
        "images": len(right),
        "top1": list(final.accuracy("net")),
        "drop_points": list(final.verdict.drop),
        "verdict": final.verdict.kind,
    }


COLUMNS = (
    "candidate", "shipped", "kept", "epochs", "validation_top1_percent", "drop_points", "drop_low",
    "drop_high", "n", "onnx_bytes", "packed_bytes", "latency_ms", "macs", "parameters", "seconds",
    "given_up",
)  # fmt: skip


def curve(tried: Sequence[Measured], chosen: Measured) -> str:
    """Return every candidate as a line of CSV, in the order of the search."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in tried:
        row: dict[str, Any] = {
            "candidate": one.candidate.name,
            "shipped": "yes" if one is chosen else "no",
            "kept": one.candidate.kept,
            "epochs": one.candidate.epochs,
            "macs": one.macs,
            "parameters": one.parameters,
            "seconds": round(one.seconds, 1),
            "given_up": one.given_up,
        }
        if one.folder is not None:
            drop = [round(100 * bound, 3) for bound in one.drop]
            row |= dict(zip(("drop_points", "drop_low", "drop_high"), drop, strict=True))
            row |= {
                "validation_top1_percent": round(100 * one.accuracy.value, 3),
                "n": len(one.right),
                "onnx_bytes": one.onnx_bytes,
                "packed_bytes": one.packed_bytes,
                "latency_ms": round(one.latency_ms, 4),
            }
        writer.writerow(row)
    return text.getvalue()


def recipe_toml(inputs: Inputs, settings: Settings) -> str:
    """Return inputs and settings of the run as TOML."""
    named = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(inputs).items()
        if value is not None and key != "seed"
    }
    return tomli_w.dumps({"inputs": named} | settings.model_dump(mode="json", exclude_none=True))
