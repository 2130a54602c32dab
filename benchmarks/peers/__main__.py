"""Secateur beside its peers, on the same trained network, data and machine.

Run: python benchmarks/peers run RECIPE --data DIR --runs runs --out results/peers/FILE.jsonl
     python benchmarks/peers report --out results/peers
``run`` makes what it needs of the recipe's chain, or finds it under --runs, then one record a row
for accuracy and one record for the time of all rows; a record that is there is not made again.
``--again ROW`` makes a row's accuracy anew, ``--again latency`` the time; ``--rows`` are those to
look at, ``latency`` among them. ``report`` writes README.md from all .jsonl files in a folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)  # the modules that benchmarks share, and `peers`

import torch  # noqa: E402
from json_lines import Record, append, is_there, read  # noqa: E402

from peers.measure import Study, givens, judge, time_rows  # noqa: E402
from peers.report import readme, write_report  # noqa: E402
from peers.rows import PACKAGES, ROWS  # noqa: E402
from secateur import data  # noqa: E402
from secateur.console import say  # noqa: E402
from secateur.pipeline import open_chain  # noqa: E402
from secateur.recipe import load_recipe  # noqa: E402
from secateur.store import Store  # noqa: E402

LATENCY = "latency"
ROOT = Path(__file__).resolve().parent.parent.parent


def run(said: argparse.Namespace) -> None:
    """Measure each row of one trained network."""
    recipe = load_recipe(said.recipe, said.set)
    chain = open_chain(recipe, Store(said.runs / "stages"), said.data, torch.device("cpu"))
    study = Study(chain, said.runs / "peers" / recipe.id, said.calibration, said.threads)
    cell = {"network": recipe.network.name, "recipe_id": recipe.id, "seed": recipe.seed}
    cell |= {"calibration": said.calibration, "images": said.images}
    about = {"recipe": said.recipe, "sets": said.set, "data": recipe.data.name}
    about |= {"geometry": recipe.geometry, "threads": said.threads}
    torch.set_num_threads(said.threads)
    run_accuracy(said, study, cell, about)
    if LATENCY in said.rows:
        run_latency(said, study, cell, about)


def wanted(said: argparse.Namespace, cell: Record) -> bool:
    """Whether a row is to be measured now."""
    return cell["row"] in said.rows and (cell["row"] in said.again or not is_there(said.out, cell))


def run_accuracy(said: argparse.Namespace, study: Study, cell: Record, about: Record) -> None:
    """One record a row."""
    keys = [key for key in ROWS if wanted(said, cell | {"row": key})]
    if not keys:
        return
    test = data.load(study.chain.recipe.data.name, said.data, train=False).spread(said.images)
    with givens(study, keys) as given:
        for key in keys:
            found = judge(study, key, given[key], test)
            right = found.get("error", "ok")
            say(f"{key}: {right}")
            append(said.out, cell | {"row": key} | found | about, PACKAGES)


def run_latency(said: argparse.Namespace, study: Study, cell: Record, about: Record) -> None:
    """One record for all rows, which take turns."""
    cell = cell | {"row": LATENCY, "repeats": said.repeats, "threads": said.threads}
    if not wanted(said, cell):
        return
    same = {key: cell[key] for key in ("recipe_id", "calibration", "images")}
    before = [record for record in read(said.out) if same.items() <= record.items()]
    told = {record["row"]: record.get("said", {}) for record in before}
    found = time_rows(study, [key for key in ROWS if key in said.rows], told, said.repeats)
    append(said.out, cell | {"rows": found} | about, PACKAGES)


def report(said: argparse.Namespace) -> None:
    """Write the page, and its summary into the project's README if it is the page that ships."""
    write_report(said.out)
    if said.out.resolve() == ROOT / "results" / "peers":
        path = ROOT / "README.md"
        path.write_text(readme(path.read_text(encoding="utf-8"), said.out), encoding="utf-8")


def arguments() -> argparse.Namespace:
    """What the command line says."""
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
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    options.run(options)
