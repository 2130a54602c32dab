"""``bench``: files and networks timed in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.console import say

app = typer.Typer()


@app.command(rich_help_panel="Files")
def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".onnx or .sec files.")],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="NAME",
            help="A baseline; repeatable. A network (mobilenet_v2, shufflenet_v2_x1_0 or alexnet, "
            "in eager PyTorch, fp32), a runtime (onnxruntime, openvino), or a file.",
        ),
    ] = None,
    threads: options.Threads = 2,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", help="Batch size; repeatable. Default: 1 and 32.", min=1),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed turns.", min=1)] = 200,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File for the raw samples.")
    ] = Path("bench.json"),
    json: Annotated[bool, typer.Option("--json", help="Raw samples on stdout as well.")] = False,
) -> None:
    """Compare files: latency, throughput, cold start and memory.

    Candidates take turns (A B A B), warm-up is not counted, ratios have intervals, and a noisy
    machine is reported as noisy.

    Cost: about a minute for two small files; quiet cores give narrow intervals.

    Examples:
        secateur bench net.sec --against shufflenet_v2_x1_0

        secateur bench pruned.onnx quantized.onnx --threads 1 --batch 1 --batch 64

        secateur bench quantized.onnx --against openvino
    """
    from secateur.benchmarking import comparison
    from secateur.disk import check_output

    check_output(out, files)
    sizes = tuple(sorted(set(batch or (1, 32))))
    result = comparison.benchmark(
        files, against or [], threads=threads, batches=sizes, repeats=repeats
    )
    comparison.save(result, out)
    if json:
        from json import dumps

        typer.echo(dumps(result.to_dict()))
    else:
        from secateur.cli.bench_table import render

        options.show(render(result))
    say(f"raw samples: {out}")
