"""The ``secateur`` command: arguments, one-line errors, exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur import __version__
from secateur.console import say, stderr
from secateur.errors import InterruptedByUserError, SecateurError

app = typer.Typer(
    name="secateur",
    help="Prunes and quantizes image classifiers, and proves what that cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="[RECIPE]", help="A built-in recipe (see `secateur recipes`) or a path to a .toml."
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with the data set's files; only read. Else SECATEUR_DATA, else a download.",
    ),
]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Where stages, records and reports go.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replaces the recipe's seed.", min=0)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one field, e.g. train.epochs=3."),
]
Json = Annotated[bool, typer.Option("--json", help="Records on stdout, all else on stderr.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if version:
        typer.echo(f"secateur {__version__}")
        raise typer.Exit


def _chain_command(upto: str, summary: str, examples: str) -> Callable[..., None]:
    """Make the command that goes down the chain to ``upto``."""

    def command(
        recipe: RecipeName = "quickstart",
        data: DataFolder = None,
        out: OutFolder = Path("runs"),
        device: Device = "auto",
        seed: Seed = None,
        overrides: Overrides = None,
        json: Json = False,
    ) -> None:
        from secateur.pipeline.run import run  # torch is slow to import: not for --help

        try:
            result = run(recipe, upto, data=data, out=out, device=device, seed=seed, sets=overrides)
        except KeyboardInterrupt:  # caught here, because typer says no more than "Aborted!"
            raise InterruptedByUserError(
                "interrupted", remedy="the same command goes on from the last checkpoint"
            ) from None
        if json:
            sys.stdout.writelines(record.to_json() + "\n" for record in result.records)
        else:
            result.print_summary()
        if result.packed is not None:
            say(f"packed: {result.packed}")
        say(
            f"report: {result.folder / 'report.html'}"
            if result.fresh
            else f"nothing to do: every stage is in place; report: {result.folder / 'report.html'}"
        )

    command.__doc__ = f"{summary}\n\nExamples:\n\n" + "\n\n".join(
        f"    {line}" for line in examples.splitlines()
    )
    return command


_CHAIN = {
    "run": (
        "pack",
        "Run the whole chain: train, scan, prune, export, quantize, bench, pack, report.",
        "secateur run\n"
        "secateur run shufflenet_v2-fashionmnist-quick --data ~/data\n"
        "secateur run my.toml --set train.epochs=3 --seed 1 --json > records.jsonl",
    ),
    "train": ("train", "Train the reference network.", "secateur train my.toml --device cuda"),
    "scan": (
        "scan",
        "Scan how much can go: accuracy on validation against the fraction pruned.",
        "secateur scan\nsecateur scan my.toml --set scan.tolerance=0.5",
    ),
    "prune": (
        "prune",
        "Prune and retrain in rounds, then remove what is masked.",
        "secateur prune my.toml --set prune.fraction=0.5 --set prune.retrain=finetune",
    ),
    "export": ("export", "Export the float networks to ONNX.", "secateur export my.toml"),
    "scan-bits": (
        "scan-bits",
        "Scan how many bits each layer needs: loss on validation against the bits of its weight.",
        "secateur scan-bits my.toml\nsecateur scan-bits my.toml --set quantize.scan_images=0",
    ),
    "quantize": (
        "quantize",
        "Quantize the pruned network to int8 ONNX.",
        "secateur quantize my.toml --set quantize.images=1000 --set quantize.method=auto\n"
        "secateur quantize my.toml --set quantize.bits=mixed --set quantize.tolerance=0.2\n"
        "secateur quantize my.toml --set quantize.bits=4 --set quantize.epochs=2\n"
        "secateur quantize my.toml --set quantize.price=auto --set quantize.scan_images=0",
    ),
    "measure": (
        "bench",
        "Measure accuracy, size and latency of a recipe's files.",
        "secateur measure my.toml --set bench.threads=1",
    ),
}
for _name, (_upto, _summary, _examples) in _CHAIN.items():
    app.command(_name)(_chain_command(_upto, _summary, _examples))


@app.command()
def reproduce(
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="cifar10, fashionmnist; both unless said."),
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option("--network", help="mobilenet_v2, shufflenet_v2 or alexnet; all unless said."),
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="quick, fast or paper.")] = "quick",
    seeds: Annotated[int, typer.Option("--seeds", help="How many, from 0.", min=1)] = 1,
    tables: Annotated[str, typer.Option("--tables", help="Such as 1,3,5; all unless said.")] = "",
    plan: Annotated[
        bool, typer.Option("--plan", help="Print cells, what is done and the time left; run none.")
    ] = False,
    demonstration: Annotated[
        bool,
        typer.Option("--demonstrate", help="Also scan with masks not in force, labeled so."),
    ] = False,
    time_again: Annotated[
        bool,
        typer.Option("--time-again", help="Then measure finished cells again, one at a time."),
    ] = False,
    data: DataFolder = None,
    out: OutFolder = Path("runs/reproduce"),
    device: Device = "auto",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", help="Cells at a time; one a GPU or two cores unless said.", min=1),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Regenerate the published study and set it beside both publications.

    Each cell (network, data set, seed) is skipped when done and goes on where it was killed. Cells
    made elsewhere count once their folders are copied into DIR/cells.

    Examples:
        secateur reproduce --plan

        secateur reproduce --dataset fashionmnist --network shufflenet_v2 --seeds 3 --data ~/data

        secateur reproduce --tables 5,6 --preset fast --device cuda
    """
    from secateur.study.reproduce import study

    wanted = study(
        networks=network or (), datasets=dataset or (), preset=preset, seeds=seeds, tables=tables,
        out=out, device=device, jobs=jobs, sets=overrides,
    )  # fmt: skip
    if plan:
        _show(wanted.plan())
        return
    try:
        errors = wanted.run(data)
        if time_again:
            errors += wanted.time_again(data)
        if demonstration:
            wanted.demonstrate(data)
    except KeyboardInterrupt:
        raise InterruptedByUserError(
            "interrupted", remedy="the same command goes on from the last checkpoints"
        ) from None
    say(f"reproduction: {wanted.report()}")
    if errors:
        raise SecateurError(f"{len(errors)} cells failed", found="; ".join(errors))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, with records.jsonl in it.")],
) -> None:
    """Write report.html and report.md anew from a run's records.

    Examples:
        secateur report runs/quickstart-0123456789ab
    """
    from secateur.report import write_report

    write_report(run)
    say(f"report: {run / 'report.html'}")


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A run, a stage, a recipe or a file of either.")],
) -> None:
    """Print what a run, a stage or a file is.

    Examples:
        secateur show runs/quickstart-0123456789ab

        secateur show runs/stages/quantize-0123456789ab/quantized.onnx
    """
    from secateur.cli.describe import describe

    _print(describe(path))


@app.command()
def groups(recipe: RecipeName = "quickstart", overrides: Overrides = None) -> None:
    """Print which channels can be taken out, what goes along with each, and what stays and why.

    Examples:
        secateur groups shufflenet_v2-fashionmnist-quick

        secateur groups my.toml --set network.name=mobilenet_v2
    """
    from secateur.cli.describe import describe_groups

    _print(describe_groups(recipe, overrides))


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="An ONNX file, float or quantized.")],
    threads: Annotated[int, typer.Option("--threads", help="Inside one operator.", min=1)] = 2,
    repeats: Annotated[int, typer.Option("--repeats", help="Runs that are timed.", min=1)] = 50,
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="R", help="The image's side, if the file has none.", min=1),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All nodes, not the longest.")] = False,
    json: Annotated[bool, typer.Option("--json", help="All of it, as one JSON object.")] = False,
) -> None:
    """Say where a file's time goes, what is still in float, and which widths do not fit.

    Examples:
        secateur explain runs/stages/quantize-0123456789ab/quantized.onnx

        secateur explain network.onnx --threads 1 --all

        secateur explain network.onnx --json > network.json
    """
    from secateur.explain import explain as find
    from secateur.explain import render

    found = find(file, threads, repeats, size)
    if json:
        from json import dumps

        typer.echo(dumps(found.to_dict(), indent=1))
        return
    _show(render(found, everything))


@app.command()
def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".onnx or .sec files.")],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="NAME",
            help="Compare with this first: mobilenet_v2, shufflenet_v2_x1_0 or alexnet (in eager "
            "PyTorch, fp32), a runtime (onnxruntime, openvino), or a file. May be given again.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="Inside one operator.", min=1)] = 2,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", help="Batch sizes; 1 and 32 unless said.", min=1)
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Turns that count.", min=1)] = 200,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where raw samples are kept.")
    ] = Path("bench.json"),
    json: Annotated[bool, typer.Option("--json", help="Raw samples on stdout as well.")] = False,
) -> None:
    """Time files beside one another: latency, throughput, cold start and memory.

    They take turns (A B A B), warm-up does not count, ratios have intervals, and a noisy machine
    is said to be noisy.

    Examples:
        secateur bench net.sec --against shufflenet_v2_x1_0

        secateur bench pruned.onnx quantized.onnx --threads 1 --batch 1 --batch 64

        secateur bench quantized.onnx --against openvino
    """
    from secateur.benchmark import comparison as benches

    sizes = tuple(sorted(set(batch or (1, 32))))
    found = benches.bench(files, against or [], threads=threads, batches=sizes, repeats=repeats)
    benches.save(found, out)
    if json:
        from json import dumps

        typer.echo(dumps(found.to_dict()))
    else:
        from secateur.cli.bench_table import render

        _show(render(found))
    say(f"raw samples: {out}")


Packed = Annotated[Path, typer.Argument(metavar="FILE", help="A packed file, .sec.")]


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a .onnx file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    data: DataFolder = None,
) -> None:
    """Pack a run's quantized network, with its provenance and accuracy, into one small file.

    Examples:
        secateur pack runs/quickstart-0123456789ab -o net.sec

        secateur pack quantized.onnx -o net.sec
    """
    from secateur.cli.files import pack_into

    _print(pack_into(source, out, data))


@app.command()
def unpack(
    file: Packed,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
) -> None:
    """Write the ONNX file that was packed, bit for bit.

    Examples:
        secateur unpack net.sec -o net.onnx
    """
    from secateur.cli.files import unpack_into

    _print(unpack_into(file, out))


@app.command()
def verify(file: Packed, data: DataFolder = None) -> None:
    """Check a packed file's checksums, hash and bounds, and with data the accuracy it records.

    Examples:
        secateur verify net.sec

        secateur verify net.sec --data ~/data
    """
    from secateur.cli.files import verified

    _print(verified(file, data))


@app.command()
def predict(
    file: Packed,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option("--top", help="Classes for each image.", min=1)] = 3,
    threads: Annotated[int, typer.Option("--threads", help="Inside one operator.", min=1)] = 2,
) -> None:
    """Classify image files with a packed network.

    Examples:
        secateur predict net.sec shoe.png

        secateur predict net.sec photos/*.jpg --top 1
    """
    from secateur.cli.files import predictions

    _print(predictions(file, images, top, threads))


def _show(parts: Iterable[Any]) -> None:
    """Print tables and lines as the terminal's width allows."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width of its own
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


@app.command()
def recipes() -> None:
    """List the built-in recipes.

    Examples:
        secateur recipes
    """
    from secateur.recipe import builtin_recipes, load_recipe

    for name in builtin_recipes():
        typer.echo(f"{name:<40}{load_recipe(name).description}")


def main() -> None:
    """Run the command; a failure is one line on stderr and a non-zero exit code."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")  # so that it may stand anywhere
    try:
        app()
    except SecateurError as error:
        _fail(str(error), error.exit_code, debug)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}", 1, debug)
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        _fail(f"internal error: {type(error).__name__}: {line}; --debug shows where", 70, debug)


def _fail(line: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    stderr.print(f"secateur: {line}", markup=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
