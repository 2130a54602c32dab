"""Commands for packed files: pack, unpack, verify, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options

app = typer.Typer()

PackedFile = Annotated[Path, typer.Argument(metavar="FILE", help="A packed file, .sec.")]


@app.command(rich_help_panel="Files")
def pack(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a .onnx file.")],
    out: options.OutFile,
    data: options.DataFolder = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="Class names of an ONNX file, one a line."),
    ] = None,
    mean: Annotated[
        str, typer.Option("--mean", metavar="M,M,M", help="Mean per channel, with --classes.")
    ] = "0.485,0.456,0.406",
    std: Annotated[
        str, typer.Option("--std", metavar="S,S,S", help="Deviation per channel, with --classes.")
    ] = "0.229,0.224,0.225",
    limit: options.Limit = options.UNPACKED_LIMIT,
) -> None:
    """Pack a run's quantized network, with its provenance and accuracy, into one small file.

    Cost: seconds for a finished run; an unfinished run is completed first.

    Examples:
        secateur pack runs/quickstart-0123456789ab -o net.sec

        secateur pack quantized.onnx -o net.sec

        secateur pack resnet18.onnx -o resnet18.sec --classes names.txt
    """
    from secateur.cli.files import Labels, pack_into

    labels = None if classes is None else Labels(classes, mean, std)
    options.print_lines(pack_into(source, out, data, labels, limit))


@app.command(rich_help_panel="Files")
def unpack(
    file: PackedFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Default: FILE with .onnx for .sec."),
    ] = None,
    limit: options.Limit = options.UNPACKED_LIMIT,
) -> None:
    """Restore the packed ONNX file, bit for bit.

    Cost: less than a second.

    Examples:
        secateur unpack net.sec

        secateur unpack net.sec -o network.onnx
    """
    from secateur.cli.files import unpack_into

    options.print_lines(unpack_into(file, out, limit))


@app.command(rich_help_panel="Files")
def verify(file: PackedFile, data: options.DataFolder = None) -> None:
    """Check a packed file's checksums, hash and bounds; with data, also its recorded accuracy.

    Cost: less than a second; with data, one pass over the test images.

    Examples:
        secateur verify net.sec

        secateur verify net.sec --data ~/data
    """
    from secateur.cli.files import verified

    options.print_lines(verified(file, data))


@app.command(rich_help_panel="Files")
def predict(
    file: PackedFile,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    top: Annotated[int, typer.Option("--top", help="Classes for each image.", min=1)] = 3,
    threads: options.Threads = 2,
    json: Annotated[bool, typer.Option("--json", help="A JSON object for each image.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="A row for each class of an image.")] = False,
) -> None:
    """Classify image files with a packed network.

    Cost: milliseconds for each image.

    Examples:
        secateur predict net.sec shoe.png

        secateur predict net.sec photos/*.jpg --top 1

        secateur predict net.sec photos/ --json > classes.jsonl
    """
    from secateur.cli.files import predictions

    if json and csv:
        raise typer.BadParameter("choose one of --json and --csv")
    form = "json" if json else "csv" if csv else "text"
    options.print_lines(predictions(file, images, top, threads, form))
