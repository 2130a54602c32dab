"""Commands that inspect recipes, runs, networks and files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.console import say

app = typer.Typer()


@app.command(rich_help_panel="Inspect")
def recipes(
    fields: Annotated[bool, typer.Option("--fields", help="List the fields of a recipe.")] = False,
) -> None:
    """List the built-in recipes, or every field of a recipe with its values and default.

    Cost: none.

    Examples:
        secateur recipes

        secateur recipes --fields
    """
    if fields:
        from secateur.recipe.reference_table import recipe_lines

        options.print_lines(recipe_lines())
        return
    from secateur.recipe import builtin_recipes, load_recipe

    for name in builtin_recipes():
        typer.echo(f"{name:<40}{load_recipe(name).description}")


@app.command(rich_help_panel="Inspect")
def show(
    path: Annotated[Path, typer.Argument(help="A run, a stage, a recipe, or a file of either.")],
) -> None:
    """Describe a run, a stage or a file.

    Cost: seconds.

    Examples:
        secateur show runs/quickstart-0123456789ab

        secateur show runs/stages/quantize-0123456789ab/quantized.onnx
    """
    from secateur.cli.describe import describe

    options.show(describe(path))


@app.command(rich_help_panel="Inspect")
def groups(recipe: options.RecipeName = "quickstart", overrides: options.Overrides = None) -> None:
    """List the channels that can be removed, what is removed with them, and what is protected.

    Cost: seconds; needs neither data nor weights.

    Examples:
        secateur groups shufflenet_v2-fashionmnist-quick

        secateur groups my.toml --set network.name=mobilenet_v2
    """
    from secateur.cli.describe import describe_groups

    options.print_lines(describe_groups(recipe, overrides))


@app.command(rich_help_panel="Inspect")
def explain(
    file: Annotated[Path, typer.Argument(help="An ONNX or .sec file, float or quantized.")],
    threads: options.Threads = 2,
    repeats: Annotated[int, typer.Option("--repeats", help="Runs that are timed.", min=1)] = 50,
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="R", help="Image side, if the file leaves it open.", min=1),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All nodes, not the longest.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Everything, as one JSON object.")] = False,
) -> None:
    """Show where a file's time goes, what still runs in float, and which widths miss the kernel.

    Cost: seconds; runs the file `--repeats` times on noise.

    Examples:
        secateur explain runs/stages/quantize-0123456789ab/quantized.onnx

        secateur explain network.onnx --threads 1 --all

        secateur explain network.onnx --json > network.json
    """
    from secateur.profiling import explain as explain_file
    from secateur.profiling import render

    explanation = explain_file(file, threads, repeats, size)
    if json:
        from json import dumps

        typer.echo(dumps(explanation.to_dict(), indent=1))
        return
    options.show(render(explanation, everything))


@app.command(rich_help_panel="Inspect")
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, with records.jsonl in it.")],
    scripts: Annotated[
        bool, typer.Option(help="Make charts interactive; adds 0.9 MB of Vega to the page.")
    ] = True,
) -> None:
    """Rewrite report.html and report.md from a run's records.

    Cost: seconds.

    Examples:
        secateur report runs/quickstart-0123456789ab

        secateur report results/quickstart --no-scripts
    """
    from secateur.report import write_report

    write_report(run, scripts=scripts)
    say(f"report: {run / 'report.html'}")


@app.command(rich_help_panel="Inspect")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write a page there.")
    ] = None,
) -> None:
    """Compare the results of several runs: accuracy, size, latency and settings.

    Cost: seconds.

    Examples:
        secateur compare runs/quickstart-0123456789ab out/

        secateur compare runs/* --out comparison.html
    """
    from secateur.report.comparison_page import (
        compare as compare_reports,
    )
    from secateur.report.comparison_page import (
        comparison_table,
        read_runs,
        run_names,
        write_comparison,
    )

    reports, names = read_runs(runs), run_names(runs)
    options.show([comparison_table(names, compare_reports(reports))])
    if out is not None:
        write_comparison(names, reports, out)
        say(f"comparison: {out}")
