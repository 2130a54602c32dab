"""Compares Secateur with other tools on the same trained network, data and machine.

Run: python -m benchmarks peers run RECIPE --data DIR --runs runs --out results/peers/FILE.jsonl
     python -m benchmarks peers report --out results/peers
``run`` makes missing stages of the recipe under --runs, then one record of accuracy for each row
and one record for the time of all rows; existing records are skipped. ``--again ROW`` repeats the
accuracy of a row, ``--again latency`` the timing; ``--rows`` selects rows, including ``latency``.
``report`` writes README.md from all .jsonl files in a folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.common.records import Record, append, is_there, read
from benchmarks.peers.measure import Study, accuracy, row_inputs, time_rows
from benchmarks.peers.report import write_report
from benchmarks.peers.rows import PACKAGES, ROWS
from secateur import data
from secateur.console import say
from secateur.pipeline import open_chain
from secateur.recipe import load_recipe
from secateur.store import Store

LATENCY = "latency"


def run(options: argparse.Namespace) -> None:
    """Measure each row of one trained network."""
    recipe = load_recipe(options.recipe, options.set)
    chain = open_chain(recipe, Store(options.runs / "stages"), options.data, torch.device("cpu"))
    study = Study(chain, options.runs / "peers" / recipe.id, options.calibration, options.threads)
    cell = {"network": recipe.network.name, "recipe_id": recipe.id, "seed": recipe.seed}
    cell |= {"calibration": options.calibration, "images": options.images}
    about = {"recipe": options.recipe, "sets": options.set, "data": recipe.data.name}
    about |= {"geometry": recipe.geometry, "threads": options.threads}
    torch.set_num_threads(options.threads)
    run_accuracy(options, study, cell, about)
    if LATENCY in options.rows:
        run_latency(options, study, cell, about)


def is_missing(options: argparse.Namespace, cell: Record) -> bool:
    """Whether a row must be measured."""
    return cell["row"] in options.rows and (
        cell["row"] in options.again or not is_there(options.out, cell)
    )


def run_accuracy(options: argparse.Namespace, study: Study, cell: Record, about: Record) -> None:
    """Write one record of accuracy for each row."""
    keys = [key for key in ROWS if is_missing(options, cell | {"row": key})]
    if not keys:
        return
    test = data.load(study.chain.recipe.data.name, options.data, train=False).spread(options.images)
    with row_inputs(study, keys) as inputs:
        for key in keys:
            result = accuracy(study, key, inputs[key], test)
            right = result.get("error", "ok")
            say(f"{key}: {right}")
            append(options.out, cell | {"row": key} | result | about, PACKAGES)


def run_latency(options: argparse.Namespace, study: Study, cell: Record, about: Record) -> None:
    """Write one record of time for all rows, timed in turns."""
    cell = cell | {"row": LATENCY, "repeats": options.repeats, "threads": options.threads}
    if not is_missing(options, cell):
        return
    same = {key: cell[key] for key in ("recipe_id", "calibration", "images")}
    before = [record for record in read(options.out) if same.items() <= record.items()]
    notes = {record["row"]: record.get("said", {}) for record in before}
    result = time_rows(study, [key for key in ROWS if key in options.rows], notes, options.repeats)
    append(options.out, cell | {"rows": result} | about, PACKAGES)


def report(options: argparse.Namespace) -> None:
    """Write the page."""
    write_report(options.out)


def main(arguments: list[str]) -> None:
    """Measure rows, or write the report."""
    parser = argparse.ArgumentParser(
        prog="peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help=run.__doc__)
    running.add_argument("recipe", help="whose networks are measured")
    running.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    running.add_argument("--data", type=Path, help="folder of the data set")
    running.add_argument("--runs", type=Path, default=Path("runs"), help="where stages are")
    running.add_argument("--out", type=Path, required=True, help="file of records")
    every = [*ROWS, LATENCY]
    running.add_argument("--rows", nargs="+", choices=every, default=every, metavar="ROW")
    running.add_argument("--again", nargs="+", choices=every, default=[], metavar="ROW")
    running.add_argument("--images", type=int, default=0, help="test images; 0 for all")
    running.add_argument("--calibration", type=int, default=512, help="training images")
    running.add_argument("--repeats", type=int, default=200, help="turns that count")
    running.add_argument("--threads", type=int, default=2)
    running.set_defaults(run=run)
    reporting = commands.add_parser("report", help=report.__doc__)
    reporting.add_argument("--out", type=Path, required=True, help="folder of records")
    reporting.set_defaults(run=report)
    options = parser.parse_args(arguments)
    options.run(options)
