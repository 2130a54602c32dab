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
) -> None:
    """Pack a run's quantized network, with its provenance and accuracy, into one small file.

    Cost: seconds for a finished run; an unfinished run is completed first.

    Examples:
        secateur pack runs/quickstart-0123456789ab -o net.sec

        secateur pack quantized.onnx -o net.sec
    """
    from secateur.cli.files import pack_into

    options.print_lines(pack_into(source, out, data))


@app.command(rich_help_panel="Files")
def unpack(file: PackedFile, out: options.OutFile) -> None:
    """Restore the packed ONNX file, bit for bit.

    Cost: less than a second.

    Examples:
        secateur unpack net.sec -o net.onnx
    """
    from secateur.cli.files import unpack_into

    options.print_lines(unpack_into(file, out))


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
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option("--top", help="Classes for each image.", min=1)] = 3,
    threads: options.Threads = 2,
) -> None:
    """Classify image files with a packed network.

    Cost: milliseconds for each image.

    Examples:
        secateur predict net.sec shoe.png

        secateur predict net.sec photos/*.jpg --top 1
    """
    from secateur.cli.files import predictions

    options.print_lines(predictions(file, images, top, threads))
