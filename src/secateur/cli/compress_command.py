"""``secateur compress``: compresses a trained network and tests the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.console import say
from secateur.tracking import tracking

app = typer.Typer()

MISSED = 3
"""Exit code if the goal is missed or the test is inconclusive."""


NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="[NETWORK]",
        help="torchvision:NAME, timm:NAME, file.py:function (runs that file), weights of "
        "--network, net.onnx or program.pt2 (quantized and packed only; a program can run "
        "code), or recipe.toml of an earlier run. Default: the trained network in the package, "
        "on the excerpt of FashionMNIST in it.",
    ),
]
Description = Annotated[
    str, typer.Option("--network", metavar="NAME", help="The network of a file of weights.")
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help=".safetensors, .pt or .pth; runs no code."),
]
Images = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder of images, by class.")
]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-drop", metavar="POINTS", help="Accuracy that may be lost. Default: 1."),
]
Target = Annotated[str | None, typer.Option("--target", help="latency (default), size or macs.")]
Latency = Annotated[
    str | None, typer.Option("--latency", metavar="TIME", help="Goal for one image, e.g. 2ms.")
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="BYTES", help="Goal for net.sec, e.g. 300kB.")
]
Within = Annotated[
    str | None, typer.Option("--within", metavar="TIME", help="Time limit, e.g. 30m.")
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", help="Fine-tuning of each candidate.", min=0)
]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", metavar="PIXELS", help="Side of the input.", min=1)
]
Resize = Annotated[
    int | None,
    typer.Option("--resize", metavar="PIXELS", help="Shorter side before the crop.", min=1),
]
Merge = Annotated[
    bool, typer.Option("--merge", help="Also try merged layers, if latency is the target.")
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Check the inputs, print what would be done, and stop.")
]
OutFolder = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Folder that receives everything.")
]


@app.command("compress", rich_help_panel="Your own network")
def compress(
    network: NetworkArgument = "",
    description: Description = "",
    weights: Weights = None,
    data: Images = None,
    max_drop: MaxDrop = None,
    target: Target = None,
    latency: Latency = None,
    size: Size = None,
    within: Within = None,
    epochs: Epochs = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    threads: options.Threads = 2,
    seed: options.Seed = None,
    out: OutFolder = Path("compressed"),
    device: options.Device = "auto",
    log: options.Log = "",
    merge: Merge = False,
    plan: Plan = False,
) -> None:
    """Compress a trained network under a limit on the accuracy it may lose, and test the result.

    Cost: under 3 minutes on two cores without arguments; else the plan says, and --within limits.

    Exit code: 0 if the goal is met, 3 if it is missed or the test cannot tell; the best file
    is kept in both cases.

    Examples:
        secateur compress

        secateur compress resnet18.pt --network torchvision:resnet18 --data images/ --max-drop 0.5

        secateur compress my_model.py:build --weights best.safetensors --data images/ --within 30m

        secateur compress net.onnx --data images/ --max-drop 0.5

        secateur compress torchvision:resnet18 --weights best.pt --data images/ --plan
    """
    from secateur.compression.command import Arguments, compress_command, plan_command

    arguments = Arguments(
        network=network, description=description, weights=weights, data=data, max_drop=max_drop,
        target=target, latency=latency, size=size, within=within, epochs=epochs,
        image_size=image_size, resize=resize, mean=mean or "", std=std or "", threads=threads,
        seed=seed, device=device, merge=merge or None,
    )  # fmt: skip
    if plan:
        plan_command(arguments, out)
        return
    with options.resumable(), tracking(log, out):
        result = compress_command(arguments, out)
    typer.echo(f"{result.verdict}.")
    typer.echo(f"It is {result.summary}.")
    say(f"files: {out}; report: {result.report}")
    if result.verdict.kind != "meets":
        raise typer.Exit(MISSED)
