"""``run`` and the commands that stop at an earlier stage of the chain."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import typer

from secateur.cli import options
from secateur.console import say
from secateur.tracking import tracking

app = typer.Typer()

_COMMANDS = {
    "run": (
        "pack",
        "Run the whole chain: train, scan, prune, export, quantize, measure, pack, report.",
        "The quickstart takes about 5 minutes on two cores. Finished stages are not repeated.",
        "secateur run\n"
        "secateur run shufflenet_v2-fashionmnist-quick --data ~/data\n"
        "secateur run my.toml --set train.epochs=3 --seed 1 --json > records.jsonl",
    ),
    "train": (
        "train",
        "Train the reference network.",
        "The longest stage; it writes a checkpoint after each epoch.",
        "secateur train my.toml --device cuda",
    ),
    "scan": (
        "scan",
        "Scan accuracy on validation against the fraction pruned, of the network and each layer.",
        "One pass over the validation images per point; seconds for the quickstart.",
        "secateur scan\nsecateur scan my.toml --set scan.tolerance=0.5",
    ),
    "prune": (
        "prune",
        "Prune and retrain in rounds, then remove dead channels.",
        "Trains `prune.rounds` times `prune.epochs` epochs.",
        "secateur prune my.toml --set prune.fraction=0.5 --set prune.retrain=finetune",
    ),
    "export": (
        "export",
        "Export the float networks to ONNX.",
        "Seconds, once the networks are trained.",
        "secateur export my.toml",
    ),
    "scan-bits": (
        "scan-bits",
        "Scan how many bits each layer needs: loss on validation against the bits of its weight.",
        "One pass over `quantize.scan_images` validation images per layer and number of bits.",
        "secateur scan-bits my.toml\nsecateur scan-bits my.toml --set quantize.scan_images=0",
    ),
    "measure": (
        "bench",
        "Measure accuracy, size and latency of a recipe's files.",
        "One pass over the test images per file, then `bench.repeats` timings of one image.",
        "secateur measure my.toml --set bench.threads=1",
    ),
}
"""Command name to its last stage, summary, cost and examples."""


def run_chain(
    last_stage: str,
    recipe: str,
    data: Path | None,
    out: Path,
    device: str,
    seed: int | None,
    overrides: list[str] | None,
    json: bool,
    store: str | None = None,
    devices: int = 1,
    log: str = "",
) -> None:
    """Run the chain up to ``last_stage`` and print the result."""
    options.wait_without_spinning()
    if devices > 1 and not options.started_together():
        from secateur.training.ranks import launch

        with options.resumable():
            launch(devices, sys.argv[1:])
        return
    from secateur.pipeline.run import run  # importing torch is slow, and --help does not need it

    with options.resumable(), tracking(log, out):
        result = run(
            recipe, last_stage, data=data, out=out, device=device, seed=seed, sets=overrides,
            storage=store,
        )  # fmt: skip
    if not result.records:  # this process helped another one to train
        return
    if json:
        sys.stdout.writelines(record.to_json() + "\n" for record in result.records)
    else:
        result.print_summary()
    if result.packed is not None:
        say(f"packed: {result.packed}")
    report = result.folder / "report.html"
    say(f"report: {report}" if result.fresh else f"nothing to do: all is done; report: {report}")


def _command(last_stage: str, summary: str, cost: str, examples: str) -> Callable[..., None]:
    """Make the command that runs the chain up to ``last_stage``."""

    def command(
        recipe: options.RecipeName = "quickstart",
        data: options.DataFolder = None,
        out: options.OutFolder = Path("runs"),
        device: options.Device = "auto",
        seed: options.Seed = None,
        overrides: options.Overrides = None,
        store: options.StoreUrl = None,
        devices: options.Devices = 1,
        json: options.Json = False,
        log: options.Log = "",
    ) -> None:
        run_chain(last_stage, recipe, data, out, device, seed, overrides, json, store, devices, log)

    lines = "\n\n".join(f"    {line}" for line in examples.splitlines())
    command.__doc__ = f"{summary}\n\nCost: {cost}\n\nExamples:\n\n{lines}"
    return command


for _name, _parts in _COMMANDS.items():
    app.command(_name, rich_help_panel="The chain")(_command(*_parts))
